"""Every error of the SDK, in one tree, with its code and whether trying again later may help.

::

    NightferryError                      nightferry_error       no
     ├── ConfigurationError              configuration          no
     ├── NetworkError                    network                yes
     │    ├── OfflineModeError           offline_mode           no
     │    ├── ServerUnreachableError     server_unreachable     yes
     │    ├── ServerError                server_error           yes
     │    ├── ThrottledError             throttled              yes
     │    └── DownloadInterruptedError   download_interrupted   yes
     ├── RequestRefusedError             request_refused        no
     │    ├── UnauthorizedError          unauthorized           no
     │    ├── UnknownModelError          unknown_model          no
     │    ├── ModelRetiredError          model_retired          no
     │    └── ArtifactGoneError          artifact_gone          yes
     ├── ProtocolError                   protocol               no
     │    └── InvalidManifestError       invalid_manifest       no
     ├── TrustError                      trust                  no
     │    ├── IntegrityError             integrity              no
     │    ├── NoTrustedRootError         no_trusted_root        no
     │    ├── MetadataMissingError       metadata_missing       yes
     │    ├── MetadataInvalidError       metadata_invalid       no
     │    ├── MetadataRollbackError      metadata_rollback      no
     │    ├── MetadataExpiredError       metadata_expired       yes
     │    ├── ClockWrongError            clock_wrong            no
     │    ├── TargetUnlistedError        target_unlisted        no
     │    ├── ManifestMismatchError      manifest_mismatch      no
     │    ├── WrongVariantError          wrong_variant          no
     │    ├── SdkTooOldError             sdk_too_old            no
     │    ├── CounterTooLowError         counter_too_low        no
     │    └── RevokedError               revoked                no
     ├── SelfTestError                   selftest               no
     │    ├── SelfTestUnreadableError    selftest_unreadable    no
     │    ├── SelfTestUnrunnableError    selftest_unrunnable    no
     │    ├── SelfTestNotFiniteError     selftest_not_finite    no
     │    ├── SelfTestWrongTop1Error     selftest_wrong_top1    no
     │    ├── SelfTestDiffersError       selftest_differs       no
     │    └── SelfTestTooSlowError       selftest_too_slow      no
     ├── CompileFailedError              compile_failed         no
     ├── PatchError                      patch_unusable         no
     ├── ConditionsNotMetError           conditions_not_met     yes
     ├── StorageError                    storage                no
     │    ├── DiskFullError              disk_full              yes
     │    └── CacheReadOnlyError         cache_read_only        no
     ├── NoModelError                    no_model               no
     │    └── EmbeddedModelError         embedded_model          no
     └── PredictionError                 prediction             no
          ├── RuntimeMissingError        runtime_missing        no
          ├── NotAClassifierError        not_a_classifier       no
          └── PreprocessingError         preprocessing          no

``code`` is stable: programs and events carry it. ``str(error)`` is a sentence for a person.
``retry_after_s`` is the server's wish in seconds (at most a day), else None.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in ``typing``, without its import
if TYPE_CHECKING:
    from typing import ClassVar


class NightferryError(Exception):
    """Whatever goes wrong in the SDK."""

    code: ClassVar[str] = "nightferry_error"
    retryable: ClassVar[bool] = False

    def __init__(self, sentence: str, *, retry_after_s: float | None = None) -> None:
        """Keep the sentence, and how long the server asked to wait, where it did."""
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class ConfigurationError(NightferryError):
    """An argument, an option or an environment variable is wrong."""

    code = "configuration"


class NetworkError(NightferryError):
    """The server gave no usable answer; the same request may work later."""

    code = "network"
    retryable = True


class OfflineModeError(NetworkError):
    """NIGHTFERRY_OFFLINE forbids the request."""

    code = "offline_mode"
    retryable = False


class ServerUnreachableError(NetworkError):
    """No connection, or it broke before an answer came."""

    code = "server_unreachable"


class ServerError(NetworkError):
    """The server answered 5xx."""

    code = "server_error"


class ThrottledError(NetworkError):
    """The server answered 429."""

    code = "throttled"


class DownloadInterruptedError(NetworkError):
    """The transfer stopped before its end; what arrived is kept and continued next time."""

    code = "download_interrupted"


class RequestRefusedError(NightferryError):
    """The server understood the request and refused it (4xx)."""

    code = "request_refused"


class UnauthorizedError(RequestRefusedError):
    """The application key is missing, wrong or not allowed (401, 403)."""

    code = "unauthorized"


class UnknownModelError(RequestRefusedError):
    """The server has no such model or channel (404)."""

    code = "unknown_model"


class ModelRetiredError(RequestRefusedError):
    """The model is retired on the server (410); an installed one keeps working."""

    code = "model_retired"


class ArtifactGoneError(RequestRefusedError):
    """The file a manifest named is not to be had any more; a new update check may name another."""

    code = "artifact_gone"
    retryable = True


class ProtocolError(NightferryError):
    """The answer is not what the protocol allows: another service, a login page, a broken proxy."""

    code = "protocol"


class InvalidManifestError(ProtocolError):
    """A manifest, from the server or beside an embedded model, lacks or distorts something."""

    code = "invalid_manifest"


class TrustError(NightferryError):
    """What was offered may not be installed."""

    code = "trust"


class IntegrityError(TrustError):
    """The bytes are not those that were promised; they were thrown away."""

    code = "integrity"


class NoTrustedRootError(TrustError):
    """The app carries no root of trust, so nothing can be verified and nothing is installed."""

    code = "no_trusted_root"


class MetadataMissingError(TrustError):
    """The server has no signed metadata, or not those that others of its metadata name."""

    code = "metadata_missing"
    retryable = True


class MetadataInvalidError(TrustError):
    """What came as signed metadata is unsigned, wrongly signed, or no metadata at all."""

    code = "metadata_invalid"


class MetadataRollbackError(TrustError):
    """Signed metadata are older than what this device has seen."""

    code = "metadata_rollback"


class MetadataExpiredError(TrustError):
    """Signed metadata are past their date: the server signs no more, or somebody holds it back."""

    code = "metadata_expired"
    retryable = True


class ClockWrongError(TrustError):
    """The device's clock is so far off that nobody can tell old metadata from new."""

    code = "clock_wrong"


class TargetUnlistedError(TrustError):
    """The signed metadata do not list what the update check offers."""

    code = "target_unlisted"


class ManifestMismatchError(TrustError):
    """The manifest says other things about a file than the signed metadata do."""

    code = "manifest_mismatch"


class WrongVariantError(TrustError):
    """The file is for another model, channel, runtime or precision than this app's."""

    code = "wrong_variant"


class SdkTooOldError(TrustError):
    """The release needs a newer version of the SDK."""

    code = "sdk_too_old"


class CounterTooLowError(TrustError):
    """The release is older than one that this device has seen or the policy demands."""

    code = "counter_too_low"


class RevokedError(TrustError):
    """The file has been recalled."""

    code = "revoked"


class SelfTestError(NightferryError):
    """The model file did not pass the self-test, and is not used."""

    code = "selftest"


class SelfTestUnreadableError(SelfTestError):
    """The self-test or the preprocessing in the manifest is not to be understood."""

    code = "selftest_unreadable"


class SelfTestUnrunnableError(SelfTestError):
    """The file cannot be run: no model, another shape, or the runtime failed on it."""

    code = "selftest_unrunnable"


class SelfTestNotFiniteError(SelfTestError):
    """An answer is no finite number."""

    code = "selftest_not_finite"


class SelfTestWrongTop1Error(SelfTestError):
    """The file's first answer to a picture is another one here than on the server."""

    code = "selftest_wrong_top1"


class SelfTestDiffersError(SelfTestError):
    """An answer is further off the server's than is tolerated."""

    code = "selftest_differs"


class SelfTestTooSlowError(SelfTestError):
    """The file takes longer than is allowed, or never came to an answer."""

    code = "selftest_too_slow"


class PatchError(NightferryError):
    """A patch does not lead from the installed file to the wanted one; fetch the whole file.

    ``reason`` is stable: ``damaged``, ``unknown_format``, ``too_large``, ``other_base``,
    ``other_target`` or ``wrong_result``.
    """

    code = "patch_unusable"

    def __init__(self, sentence: str, *, reason: str = "damaged") -> None:
        """Keep the sentence and the reason."""
        super().__init__(sentence)
        self.reason = reason


class ConditionsNotMetError(NightferryError):
    """The download conditions of the app do not hold now."""

    code = "conditions_not_met"
    retryable = True


class CompileFailedError(NightferryError):
    """What the app compiles of a model on the device could not be made of this file."""

    code = "compile_failed"


class StorageError(NightferryError):
    """The cache folder cannot be read or written."""

    code = "storage"


class DiskFullError(StorageError):
    """Too little free space to install a model safely."""

    code = "disk_full"
    retryable = True


class CacheReadOnlyError(StorageError):
    """The cache folder may not be written; what is in it still works."""

    code = "cache_read_only"


class NoModelError(NightferryError):
    """There is no model to give: none installed, none embedded, none offered."""

    code = "no_model"


class EmbeddedModelError(NoModelError):
    """The model shipped inside the app is missing or is not what its manifest says."""

    code = "embedded_model"


class PredictionError(NightferryError):
    """The model could not be run."""

    code = "prediction"


class RuntimeMissingError(PredictionError):
    """The packages that run the model are not installed."""

    code = "runtime_missing"


class NotAClassifierError(PredictionError):
    """The model does not answer a photo with one number for each label; ``run`` runs it."""

    code = "not_a_classifier"


class PreprocessingError(PredictionError):
    """The image cannot be read, or the manifest asks for a step this version does not know."""

    code = "preprocessing"
