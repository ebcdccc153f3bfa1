"""What the SDK hands to the app: models, updates, and the choices an app makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class DownloadType(StrEnum):
    """What ``get_model`` does when a model is already on the device, and when none is."""

    LOCAL_MODEL = "local_model"
    """What is here, at once and without the network; else download."""
    LOCAL_MODEL_UPDATE_IN_BACKGROUND = "local_model_update_in_background"
    """What is here, at once, and look for a newer one behind the app's back; else download."""
    LATEST_MODEL = "latest_model"
    """Ask and download first; what is here only if that fails."""


class ModelState(StrEnum):
    """Where a model stands on this device."""

    EMBEDDED = "embedded"
    """Shipped inside the app."""
    STAGED = "staged"
    """Downloaded and verified, not yet in use."""
    ACTIVE = "active"
    """In use, not yet confirmed by the app."""
    CONFIRMED = "confirmed"
    """In use, and the app said that it works."""


@dataclass(frozen=True, kw_only=True)
class DownloadConditions:
    """When a model may be downloaded. ``max_bytes`` is in bytes, None for no limit."""

    allow_metered: bool = True
    require_charging: bool = False
    max_bytes: int | None = None


@dataclass(frozen=True)
class Enrolment:
    """The rollout this installation takes part in, and its arm (``treatment``, ``control``)."""

    rollout: str | int
    arm: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """One usable model file with everything needed to run it.

    Attributes:
        name: the model's slug.
        label: the release it came with (``v3``), ``embedded`` where the app gave no manifest.
        version: number of the trained version, 0 where unknown.
        path: the model file; read-only, may be opened at any time.
        size_bytes, sha256: of that file.
        runtime: ``tflite`` or ``coreml``.
        precision: ``float32``, ``float16``, ``int8``, …; empty where unknown.
        labels: class names in the order of the model's outputs.
        preprocessing: how a photo becomes the input tensor (see ``nightferry.preprocessing``).
        is_embedded: whether it is the one shipped inside the app.
        enrolment: the rollout and arm under which it was offered, None outside rollouts.

    """

    name: str
    label: str
    version: int
    path: Path
    size_bytes: int
    sha256: str
    runtime: str
    precision: str
    labels: tuple[str, ...]
    preprocessing: Mapping[str, object] = field(repr=False, hash=False)
    is_embedded: bool
    state: ModelState
    enrolment: Enrolment | None = None


@dataclass(frozen=True, kw_only=True)
class Update:
    """What the server wants this installation to run instead of what it runs.

    ``kind`` is ``update`` or ``rollback_to_embedded``; ``download_bytes`` is 0 where the file is
    in the cache already; ``held_back`` says why the SDK will not install it by itself, or None.
    """

    name: str
    label: str
    version: int
    kind: str
    reason: str
    notes: str
    mandatory: bool
    size_bytes: int
    download_bytes: int
    held_back: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """Where one model stands: what is in use, what waits, and what went wrong.

    ``phase`` is one of ``idle``, ``available``, ``downloading``, ``staged``, ``failed``.
    ``checked_at`` is when the server last answered, in seconds since 1970 (UTC), or None.
    """

    name: str
    phase: str
    current: Model | None
    staged: Model | None
    previous_label: str | None
    offered_label: str | None
    held_back: str | None
    checked_at: float | None


@dataclass(frozen=True, kw_only=True)
class CacheReport:
    """What ``verify_cache`` found: files checked, the damaged ones (now removed), bytes in use."""

    checked: int
    damaged: tuple[Path, ...]
    size_bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing was damaged."""
        return not self.damaged
