"""Makes the services' fixtures known here."""

from __future__ import annotations

from tests.support.fixtures import postgresql_server, redis_server, s3_server

__all__ = ["postgresql_server", "redis_server", "s3_server"]
