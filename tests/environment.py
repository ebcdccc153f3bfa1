"""Settings of a test run; loaded before Django reads its own.

A run uses a throw-away data folder, no network for weights and leases short enough to wait for.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

_folder = tempfile.mkdtemp(prefix="nightferry-tests-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)

os.environ["NIGHTFERRY_DATA"] = _folder
os.environ.setdefault("SECRET_KEY", "only-for-tests")
os.environ["ALLOW_WEIGHT_DOWNLOAD"] = "false"
os.environ.setdefault("ALLOWED_HOSTS", "localhost,127.0.0.1,testserver")
os.environ.setdefault("LOG_LEVEL", "WARNING")
# Tests say themselves when a web process looks again.
os.environ["DECISION_REFRESH_S"] = "3600"
