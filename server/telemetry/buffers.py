"""Where events wait in Redis until they are counted; without Redis they go to the database.

One script, which Redis runs whole or not at all, tells an event it has seen from a new one,
counts it against its installation's day, and appends the new ones to a stream. What was taken
out and stored is deleted by its id: whoever is killed in between, or does it twice at once, takes
the same entries out again, and the events' primary key makes that harmless.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Literal

import redis
import structlog
from django.conf import settings

from server.domain.errors import Unavailable
from server.telemetry.intake import Packed

Outcome = Literal["accepted", "duplicate", "too_many"]

# How long an event sent again is known at once. Later the database knows it, when it is counted.
SEEN_S: Final = 24 * 3600
# What one installation may report on one day: a queue that filled up offline, and more.
MAX_PER_DAY: Final = 5000
# Some hundreds of MiB of Redis; beyond, devices keep their events and come again.
MAX_WAITING: Final = 1_000_000
_RETRY_AFTER_S: Final = 300
# A Redis that failed is not asked again for so long: every request would wait for its time-out.
_REST_S: Final = 5.0

# The braces keep all keys on one node of a cluster.
_STREAM: Final = "{nightferry:events}:waiting"
_WAITING: Final = "{nightferry:events}:count"
_SEEN: Final = "{nightferry:events}:seen:"
_DAY: Final = "{nightferry:events}:day:"

_APPEND: Final = """
if tonumber(redis.call('GET', KEYS[2]) or '0') >= tonumber(ARGV[1]) then return 'full' end
local fresh, outcomes = {}, {}
for i = 4, #ARGV do
  local seen, day = KEYS[2 * i - 5], KEYS[2 * i - 4]
  if redis.call('EXISTS', seen) == 1 then
    outcomes[#outcomes + 1] = 'd'
  else
    local count = redis.call('INCR', day)
    if count == 1 then redis.call('EXPIRE', day, 172800) end
    if count > tonumber(ARGV[3]) then
      outcomes[#outcomes + 1] = 't'
    else
      redis.call('SET', seen, '', 'EX', ARGV[2])
      fresh[#fresh + 1] = ARGV[i]
      outcomes[#outcomes + 1] = 'a'
    end
  end
end
if #fresh > 0 then
  redis.call('XADD', KEYS[1], '*', 'n', #fresh, 'events', '[' .. table.concat(fresh, ',') .. ']')
  redis.call('INCRBY', KEYS[2], #fresh)
end
return table.concat(outcomes)
"""
_DELETE: Final = """
for i = 1, #ARGV, 2 do
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then redis.call('DECRBY', KEYS[2], ARGV[i + 1]) end
end
if redis.call('XLEN', KEYS[1]) == 0 then redis.call('DEL', KEYS[2]) end
"""
_OUTCOMES: Final[dict[str, Outcome]] = {"a": "accepted", "d": "duplicate", "t": "too_many"}
log = structlog.get_logger(__name__)


class BufferUnavailable(Exception):
    """Redis does not answer, or has no room: the database takes the events instead."""


@dataclass(frozen=True)
class Waiting:
    """Batches taken out of the buffer, which stay there until ``RedisBuffer.delete``."""

    events: list[Packed]
    entries: list[tuple[bytes, int]]


class RedisBuffer:
    """Events that wait in Redis."""

    def __init__(self, url: str) -> None:
        self.url = url
        # Longer than a save to disk stalls it; a web thread must not wait for ever.
        self._redis = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=1)
        self._append = self._redis.register_script(_APPEND)
        self._delete = self._redis.register_script(_DELETE)
        self._rests_until = 0.0

    def append(self, events: Sequence[Packed], *, day: date) -> list[Outcome]:
        """Keep what is new, and say of each event what became of it; all of it or none.

        Raises:
            BufferUnavailable: Redis is away, full, or cannot write.
            Unavailable: ``events_backlog``: too many wait already.

        """
        if time.monotonic() < self._rests_until:
            raise BufferUnavailable
        keys = [_STREAM, _WAITING]
        for event in events:
            keys += [
                _SEEN + event.event_id.hex,
                f"{_DAY}{day:%m%d}:{event.values['device']}",
            ]
        arguments: list[int | str] = [MAX_WAITING, SEEN_S, MAX_PER_DAY]
        arguments += [event.dump() for event in events]
        try:
            answer: bytes = self._append(keys=keys, args=arguments)
        except redis.RedisError as error:
            self._rests_until = time.monotonic() + _REST_S
            log.warning("event_buffer_unavailable", error=str(error))
            raise BufferUnavailable from error
        if answer == b"full":
            raise Unavailable(
                "More events wait to be counted than there is room for; send them again later.",
                code="events_backlog",
                retry_after_s=_RETRY_AFTER_S,
            )
        return [_OUTCOMES[letter] for letter in answer.decode()]

    def peek(self, most: int) -> Waiting:
        """Return the oldest batches, of ``most`` events or few more; nothing is taken away.

        Raises:
            BufferUnavailable: Redis does not answer.

        """
        waiting = Waiting([], [])
        try:
            found: Any = self._redis.xrange(_STREAM, count=most)
        except redis.RedisError as error:
            raise BufferUnavailable from error
        for entry, fields in found:
            waiting.events.extend(_unpack(entry, fields))
            waiting.entries.append((entry, int(fields.get(b"n", 0))))
            if len(waiting.events) >= most:
                break
        return waiting

    def delete(self, waiting: Waiting) -> None:
        """Forget batches that are stored; one that is gone already changes nothing.

        Raises:
            BufferUnavailable: Redis does not answer; the same batches will come again.

        """
        arguments = [value for entry in waiting.entries for value in entry]
        try:
            self._delete(keys=[_STREAM, _WAITING], args=arguments)
        except redis.RedisError as error:
            raise BufferUnavailable from error

    def count(self) -> int:
        """Return how many events wait.

        Raises:
            BufferUnavailable: Redis does not answer.

        """
        try:
            return int(self._redis.get(_WAITING) or 0)
        except redis.RedisError as error:
            raise BufferUnavailable from error


def _unpack(entry: bytes, fields: dict[bytes, bytes]) -> Iterator[Packed]:
    try:
        for document in json.loads(fields[b"events"]):
            yield Packed.load(document)
    except (KeyError, TypeError, ValueError):
        # Written by somebody else: it must not hold up the rest.
        log.exception("event_batch_unreadable", entry=entry)


class DailyQuota:
    """What installations reported today, counted by this process where there is no Redis."""

    # Some ten MiB; installations beyond that are counted anew.
    _MOST_DEVICES = 100_000

    def __init__(self) -> None:
        self._day = date.min
        self._counts: dict[str, int] = {}

    def allows(self, device: str, *, day: date) -> bool:
        """Count one event, and say whether it is still within the installation's day."""
        if day != self._day or len(self._counts) > self._MOST_DEVICES:
            self._day, self._counts = day, {}
        count = self._counts.get(device, 0) + 1
        self._counts[device] = count
        return count <= MAX_PER_DAY

    def take_back(self, device: str) -> None:
        """Forget one event, which was there already."""
        if self._counts.get(device, 0) > 0:
            self._counts[device] -= 1


_buffers: dict[str, RedisBuffer] = {}


def redis_buffer() -> RedisBuffer | None:
    """Return the buffer where there is a Redis; None where events go to the database."""
    url = settings.BROKER_URL
    if not url.startswith(("redis://", "rediss://")):
        return None
    if url not in _buffers:
        _buffers[url] = RedisBuffer(url)
    return _buffers[url]
