"""Keeps an app's image model fresh: checks, downloads, verifies and runs it, online or offline.

Importing this package loads next to nothing: every public name is fetched from its module when
it is first used, and numpy, Pillow and the TFLite runtime only when a model is run.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in ``typing``, whose import costs more than this whole package
if TYPE_CHECKING:
    from nightferry.benchmark import BenchmarkReport as BenchmarkReport
    from nightferry.client import ModelClient as ModelClient
    from nightferry.device import DeviceProbe as DeviceProbe
    from nightferry.device import SystemProbe as SystemProbe
    from nightferry.errors import (
        ArtifactGoneError as ArtifactGoneError,
    )
    from nightferry.errors import (
        CacheReadOnlyError as CacheReadOnlyError,
    )
    from nightferry.errors import (
        ClockWrongError as ClockWrongError,
    )
    from nightferry.errors import (
        CompileFailedError as CompileFailedError,
    )
    from nightferry.errors import (
        ConditionsNotMetError as ConditionsNotMetError,
    )
    from nightferry.errors import (
        ConfigurationError as ConfigurationError,
    )
    from nightferry.errors import (
        CounterTooLowError as CounterTooLowError,
    )
    from nightferry.errors import (
        DiskFullError as DiskFullError,
    )
    from nightferry.errors import (
        DownloadInterruptedError as DownloadInterruptedError,
    )
    from nightferry.errors import (
        EmbeddedModelError as EmbeddedModelError,
    )
    from nightferry.errors import (
        IntegrityError as IntegrityError,
    )
    from nightferry.errors import (
        InvalidManifestError as InvalidManifestError,
    )
    from nightferry.errors import (
        ManifestMismatchError as ManifestMismatchError,
    )
    from nightferry.errors import (
        MetadataExpiredError as MetadataExpiredError,
    )
    from nightferry.errors import (
        MetadataInvalidError as MetadataInvalidError,
    )
    from nightferry.errors import (
        MetadataMissingError as MetadataMissingError,
    )
    from nightferry.errors import (
        MetadataRollbackError as MetadataRollbackError,
    )
    from nightferry.errors import (
        ModelRetiredError as ModelRetiredError,
    )
    from nightferry.errors import (
        NetworkError as NetworkError,
    )
    from nightferry.errors import (
        NightferryError as NightferryError,
    )
    from nightferry.errors import (
        NoModelError as NoModelError,
    )
    from nightferry.errors import (
        NotAClassifierError as NotAClassifierError,
    )
    from nightferry.errors import (
        NoTrustedRootError as NoTrustedRootError,
    )
    from nightferry.errors import (
        OfflineModeError as OfflineModeError,
    )
    from nightferry.errors import (
        PatchError as PatchError,
    )
    from nightferry.errors import (
        PredictionError as PredictionError,
    )
    from nightferry.errors import (
        PreprocessingError as PreprocessingError,
    )
    from nightferry.errors import (
        ProtocolError as ProtocolError,
    )
    from nightferry.errors import (
        RequestRefusedError as RequestRefusedError,
    )
    from nightferry.errors import (
        RevokedError as RevokedError,
    )
    from nightferry.errors import (
        RuntimeMissingError as RuntimeMissingError,
    )
    from nightferry.errors import (
        SdkTooOldError as SdkTooOldError,
    )
    from nightferry.errors import (
        SelfTestDiffersError as SelfTestDiffersError,
    )
    from nightferry.errors import (
        SelfTestError as SelfTestError,
    )
    from nightferry.errors import (
        SelfTestNotFiniteError as SelfTestNotFiniteError,
    )
    from nightferry.errors import (
        SelfTestTooSlowError as SelfTestTooSlowError,
    )
    from nightferry.errors import (
        SelfTestUnreadableError as SelfTestUnreadableError,
    )
    from nightferry.errors import (
        SelfTestUnrunnableError as SelfTestUnrunnableError,
    )
    from nightferry.errors import (
        SelfTestWrongTop1Error as SelfTestWrongTop1Error,
    )
    from nightferry.errors import (
        ServerError as ServerError,
    )
    from nightferry.errors import (
        ServerUnreachableError as ServerUnreachableError,
    )
    from nightferry.errors import (
        StorageError as StorageError,
    )
    from nightferry.errors import (
        TargetUnlistedError as TargetUnlistedError,
    )
    from nightferry.errors import (
        ThrottledError as ThrottledError,
    )
    from nightferry.errors import (
        TrustError as TrustError,
    )
    from nightferry.errors import (
        UnauthorizedError as UnauthorizedError,
    )
    from nightferry.errors import (
        UnknownModelError as UnknownModelError,
    )
    from nightferry.errors import (
        WrongVariantError as WrongVariantError,
    )
    from nightferry.models import (
        ActivationMode as ActivationMode,
    )
    from nightferry.models import (
        CacheReport as CacheReport,
    )
    from nightferry.models import (
        DownloadConditions as DownloadConditions,
    )
    from nightferry.models import (
        DownloadType as DownloadType,
    )
    from nightferry.models import (
        Model as Model,
    )
    from nightferry.models import (
        ModelState as ModelState,
    )
    from nightferry.models import (
        ModelStatus as ModelStatus,
    )
    from nightferry.models import (
        PruneReport as PruneReport,
    )
    from nightferry.models import (
        StoredFile as StoredFile,
    )
    from nightferry.models import (
        Transfer as Transfer,
    )
    from nightferry.models import (
        Update as Update,
    )
    from nightferry.prediction import Predictor as Predictor
    from nightferry.preprocessing import shrink_for_recognition as shrink_for_recognition
    from nightferry.smoothing import Smoothed as Smoothed
    from nightferry.smoothing import Smoother as Smoother
    from nightferry.timing import Timing as Timing
    from nightferry.trust import Authorisation as Authorisation
    from nightferry.trust import PatchTarget as PatchTarget
    from nightferry.trust import Policy as Policy
    from nightferry.trust import Target as Target
    from nightferry.trust import TufVerifier as TufVerifier
    from nightferry.trust import Verifier as Verifier

__version__ = "0.1.0"

_HOMES = {
    "benchmark": ("BenchmarkReport",),
    "client": ("ModelClient",),
    "device": ("DeviceProbe", "SystemProbe"),
    "errors": (
        "ArtifactGoneError",
        "CacheReadOnlyError",
        "ClockWrongError",
        "CompileFailedError",
        "ConditionsNotMetError",
        "ConfigurationError",
        "CounterTooLowError",
        "DiskFullError",
        "DownloadInterruptedError",
        "EmbeddedModelError",
        "IntegrityError",
        "InvalidManifestError",
        "ManifestMismatchError",
        "MetadataExpiredError",
        "MetadataInvalidError",
        "MetadataMissingError",
        "MetadataRollbackError",
        "ModelRetiredError",
        "NetworkError",
        "NightferryError",
        "NoModelError",
        "NotAClassifierError",
        "NoTrustedRootError",
        "OfflineModeError",
        "PatchError",
        "PredictionError",
        "PreprocessingError",
        "ProtocolError",
        "RequestRefusedError",
        "RevokedError",
        "RuntimeMissingError",
        "SdkTooOldError",
        "SelfTestDiffersError",
        "SelfTestError",
        "SelfTestNotFiniteError",
        "SelfTestTooSlowError",
        "SelfTestUnreadableError",
        "SelfTestUnrunnableError",
        "SelfTestWrongTop1Error",
        "ServerError",
        "ServerUnreachableError",
        "StorageError",
        "TargetUnlistedError",
        "ThrottledError",
        "TrustError",
        "UnauthorizedError",
        "UnknownModelError",
        "WrongVariantError",
    ),
    "models": (
        "ActivationMode",
        "CacheReport",
        "DownloadConditions",
        "DownloadType",
        "Model",
        "ModelState",
        "ModelStatus",
        "PruneReport",
        "StoredFile",
        "Transfer",
        "Update",
    ),
    "prediction": ("Predictor",),
    "preprocessing": ("shrink_for_recognition",),
    "smoothing": ("Smoothed", "Smoother"),
    "timing": ("Timing",),
    "trust": (
        "Authorisation",
        "PatchTarget",
        "Policy",
        "Target",
        "TufVerifier",
        "Verifier",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]  # noqa: PLE0604 - every entry is a text


def __getattr__(name: str) -> object:
    """Import the module a public name lives in, on first use (PEP 562)."""
    if name not in _HOME_OF:
        message = f"module 'nightferry' has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module

    value: object = getattr(import_module(f"nightferry.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return __all__
