"""Cohorts: where an installation falls for one seed, the same on every machine and for ever.

The hash is version 2 of GrowthBook's (FNV-1a, 32 bit, twice), whose published vectors the tests
check. Hashing twice is what makes two rollouts independent; the seed comes first, because with
the seed last consecutive rollouts hit the same installations.
"""

from __future__ import annotations

import functools
import re

from server.domain.errors import InvalidInput

COHORTS = 10_000
CONTROL_START = COHORTS // 2
MAX_COVERAGE_BP = COHORTS // 2

_OFFSET = 0x811C9DC5
_PRIME = 0x01000193
_MASK = 0xFFFFFFFF
_PRINTABLE = re.compile(r"\A[!-~]+\Z")


def fnv1a32(data: bytes, state: int = _OFFSET) -> int:
    """Return the 32-bit FNV-1a hash of ``data``, continued from ``state``.

    Source: Fowler, Noll, Vo, draft-eastlake-fnv.
    """
    for byte in data:
        state = ((state ^ byte) * _PRIME) & _MASK
    return state


def check_unit(unit: str) -> None:
    """Refuse what is no installation's id; no default ever stands in for one.

    Raises:
        InvalidInput: ``missing_unit`` or ``invalid_unit``.

    """
    if not unit:
        message = "There is no installation id to assign by; send the installation's own id."
        raise InvalidInput(message, code="missing_unit")
    if not _PRINTABLE.match(unit):
        message = "An installation id takes printable ASCII characters without spaces."
        raise InvalidInput(message, code="invalid_unit")


def cohort(seed: str, unit: str) -> int:
    """Return the cohort of ``unit`` for ``seed``, from 0 to 9999.

    Raises:
        InvalidInput: ``missing_unit``, ``invalid_unit`` or ``invalid_seed``.

    """
    check_unit(unit)
    once = fnv1a32(unit.encode("ascii"), _seed_state(seed))
    return fnv1a32(str(once).encode("ascii")) % COHORTS


def in_range(value: int, low: int, high: int) -> bool:
    """Say whether ``value`` lies in the half-open range [low, high)."""
    return low <= value < high


def split_seed(rollout: str, nonce: str) -> str:
    """Return the seed that splits one rollout into arms."""
    return f"split.{rollout}.{nonce}:"


def holdout_seed(model: str) -> str:
    """Return the seed of a model's golden holdout, which outlives every rollout."""
    return f"holdout.{model}:"


@functools.lru_cache(maxsize=4096)
def _seed_state(seed: str) -> int:
    # FNV reads from left to right: a poll need not hash the seed again.
    if not _PRINTABLE.match(seed):
        message = f"The seed is {seed[:40]!r}; it takes printable ASCII characters without spaces."
        raise InvalidInput(message, code="invalid_seed")
    return fnv1a32(seed.encode("ascii"))
