"""``python -m nightferry`` is the ``nightferry`` command."""

from __future__ import annotations

import sys

from nightferry.cli import main

if __name__ == "__main__":
    sys.exit(main())
