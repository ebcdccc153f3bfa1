# ruff: noqa: INP001 - a program, not a package
"""Asks the web process of this container whether it answers; for the image's HEALTHCHECK."""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 5


def main() -> int:
    """Return 0 for any answer that is no error."""
    # A host name that ALLOWED_HOSTS lets pass, whatever the operator made of it.
    host = os.environ.get("ALLOWED_HOSTS", "localhost").split(",")[0].strip().lstrip("*.")
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/healthz", headers={"Host": host or "localhost"})
        return int(connection.getresponse().status >= http.client.BAD_REQUEST)
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
