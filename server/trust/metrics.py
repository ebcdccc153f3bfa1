"""``nightferry_metadata_expires_seconds``: how long each role's metadata still hold."""

from __future__ import annotations

import time
from collections.abc import Iterator

from django.db import DatabaseError
from django.utils import timezone
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.trust import queries

_KEEP_S = 60


class MetadataLives(Collector):
    """Reads the database once a minute at most, however often it is scraped."""

    def __init__(self) -> None:
        self._read_at: float | None = None
        self._expiries: dict[str, float] = {}

    def describe(self) -> list[GaugeMetricFamily]:
        """Return the name without a reading: registering must not ask the database."""
        return [self._family()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the seconds until each role expires; negative once it has."""
        family = self._family()
        now = timezone.now().timestamp()
        for role, expires in self._read().items():
            family.add_metric([role], expires - now)
        yield family

    def _read(self) -> dict[str, float]:
        moment = time.monotonic()
        if self._read_at is None or moment - self._read_at >= _KEEP_S:
            self._read_at = moment
            try:
                lives = queries.role_lives()
                self._expiries = {life.role: life.expires_at.timestamp() for life in lives}
            except DatabaseError:
                # What was read last goes on ageing, and the alarm with it.
                return self._expiries
        return self._expiries

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "nightferry_metadata_expires_seconds",
            "Seconds until a role's signed metadata expire.",
            labels=["role"],
        )
