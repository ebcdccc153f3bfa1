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


class ActivationMode(StrEnum):
    """When a release that was brought in behind the app's back comes into use.

    ``sync``, ``activate`` and ``get_model`` with LATEST_MODEL are the app's own word and do not
    wait, except for ``sync`` and ``get_model`` under MANUAL. Where there is no model at all, the
    first one is used at once in every mode.
    """

    NEXT_LOAD = "next_load"
    """With the next ``get_model`` or ``load``; a mandatory one at once."""
    IMMEDIATE = "immediate"
    """As soon as it is verified and tested."""
    MANUAL = "manual"
    """With ``activate`` and nothing else, mandatory or not."""


class ModelState(StrEnum):
    """Where a model stands on this device."""

    EMBEDDED = "embedded"
    """Shipped inside the app."""
    STAGED = "staged"
    """Downloaded and verified, not yet in use."""
    ACTIVE = "active"
    """In use, on trial."""
    CONFIRMED = "confirmed"
    """In use, and it has proved itself: the app said so, or its predictions were good."""


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
        signature: of uploaded models, their task and every input and output; a hint that is not
            signed. What counts is the file, see ``Predictor.inputs``.

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
    signature: Mapping[str, object] = field(default_factory=dict, repr=False, hash=False)

    @property
    def is_classifier(self) -> bool:
        """Whether it names what is on a photo; else ``Predictor.run`` runs it."""
        return bool(self.labels) and self.signature.get("task") != "other"


@dataclass(frozen=True, kw_only=True)
class Update:
    """What the server wants this installation to run instead of what it runs.

    ``kind`` is ``update`` or ``rollback_to_embedded``. ``download_bytes`` is 0 where the file is
    in the cache already, and the patch's size where one fits a file that is here. ``held_back``
    says why the SDK will not install it by itself, or None.
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
class Transfer:
    """What bringing in one release cost.

    ``received_bytes`` came over the network for it, of a file of ``size_bytes``; ``resumed_bytes``
    were here from an interrupted try. ``by_patch`` tells that a patch was enough, ``patch_error``
    with which code one failed before the whole file was fetched, else it is empty.
    """

    label: str
    received_bytes: int
    resumed_bytes: int
    size_bytes: int
    by_patch: bool = False
    patch_error: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """Where one model stands: what is in use, what waits, and what went wrong.

    ``phase`` is one of ``idle``, ``checking``, ``available``, ``downloading``, ``paused``,
    ``verifying``, ``staged``, ``self_test``, ``pending``, ``trial``, ``confirmed``, ``failed``,
    ``rolled_back``. ``checked_at`` is when the server last answered, ``refreshed_at`` when its
    signed metadata were last brought up to date, in seconds since 1970 (UTC), or None.
    """

    name: str
    phase: str
    current: Model | None
    staged: Model | None
    previous_label: str | None
    pinned_labels: tuple[str, ...]
    offered_label: str | None
    held_back: str | None
    checked_at: float | None
    refreshed_at: float | None
    last_transfer: Transfer | None


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


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """One file in the cache, and what for.

    Attributes:
        path, size_bytes, sha256: the file; an unfinished transfer has the hash it will have.
        name, label, version: the release it belongs to; empty and 0 where no state names it.
        role: ``active``, ``staged``, ``previous`` or ``pinned``; ``awaited`` for a file on its way
            in, ``partial`` for an unfinished transfer, ``unused`` for what ``prune`` removes.
        last_used_at: when a process last began to use it, or it came; seconds since 1970 (UTC).

    """

    path: Path
    size_bytes: int
    sha256: str
    name: str
    label: str
    version: int
    role: str
    last_used_at: float


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What ``prune`` removed, and how many bytes that gave back."""

    removed: tuple[Path, ...]
    freed_bytes: int
