"""The roles of the repository: who signs, for how long, and under which name a file is served."""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
MODELS: Final = "models"  # the key that signs the role of every model

ROOT_KEYS: Final = 3
ROOT_THRESHOLD: Final = 2

TOP_LEVEL: Final = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
# Kinds of keys that the server may hold; those of the root it holds only in the embedded default.
KINDS: Final = (ROOT, TARGETS, MODELS, SNAPSHOT, TIMESTAMP)
ONLINE: Final = (MODELS, SNAPSHOT, TIMESTAMP)

# Something is wrong where less than this part of a role's life is left.
ALARM_BELOW: Final = 1 / 3

_LIVES: Final = {
    ROOT: dt.timedelta(days=365),
    TARGETS: dt.timedelta(days=180),
    MODELS: dt.timedelta(days=30),
    SNAPSHOT: dt.timedelta(days=7),
    TIMESTAMP: dt.timedelta(hours=24),
}
_FILE = re.compile(r"\A(?P<version>[1-9][0-9]{0,8})\.(?P<role>[a-z0-9][a-z0-9_-]{0,99})\.json\Z")


def kind_of(role: str) -> str:
    """Return the kind of key that signs a role."""
    return role if role in TOP_LEVEL else MODELS


def life_of(role: str) -> dt.timedelta:
    """Return how long a role's metadata are valid after they were signed."""
    return _LIVES[kind_of(role)]


def role_of(model: str) -> str:
    """Return the role of a model, by its slug."""
    return f"model-{model}"


def paths_of(model: str) -> tuple[str, ...]:
    """Return the paths that a model's role may list; ``*`` stands for one part of a path."""
    return f"{model}/policy", f"{model}/patches/*", f"{model}/*/*/*"


def split_name(name: str) -> tuple[str, int | None] | None:
    """Return role and version of a file's name; the version is None for ``timestamp.json``.

    None where no file is ever called so. The timestamp is the only file served without its version.
    """
    if name == "timestamp.json":
        return TIMESTAMP, None
    match = _FILE.match(name)
    if match is None or match["role"] == TIMESTAMP:
        return None
    return match["role"], int(match["version"])
