"""What can go wrong between a photo and a compiled model.

::

    MLError
    ├── PreprocessingUnknown    a manifest asks for a preprocessing this program does not know
    ├── PhotoUnreadable         bytes that are no picture
    ├── ArchitectureUnknown     no network of that name
    ├── WeightsUnavailable      pretrained weights neither in the folder nor downloadable, or wrong
    ├── TrainingImpossible      too few photos or labels, or numbers that are no longer finite
    ├── CompilationFailed       the network cannot become the wanted file
    ├── ModelUnusable           a compiled file that does not run, or answers with nonsense
    └── UploadRejected          an uploaded model that is wrong, damaged or hostile
"""

from __future__ import annotations


class MLError(Exception):
    """``code`` is stable and for programs; ``sentence`` is for people and names the fact."""

    code = "ml_error"

    def __init__(self, sentence: str, *, code: str | None = None) -> None:
        """Describe what happened; ``code`` replaces that of the class."""
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code or type(self).code


class PreprocessingUnknown(MLError):
    """A manifest asks for a preprocessing that this program does not know."""

    code = "preprocessing_unknown"


class PhotoUnreadable(MLError):
    """The bytes are no picture that can be decoded."""

    code = "photo_unreadable"


class ArchitectureUnknown(MLError):
    """There is no network of that name."""

    code = "architecture_unknown"


class WeightsUnavailable(MLError):
    """Pretrained weights are neither in the folder nor to be downloaded, or are not right."""

    code = "weights_unavailable"


class TrainingImpossible(MLError):
    """Too few photos or labels, or the numbers stopped being finite."""

    code = "training_impossible"


class CompilationFailed(MLError):
    """The network cannot become the wanted file."""

    code = "compilation_failed"


class ModelUnusable(MLError):
    """A compiled file does not run, or answers with something that is not a probability."""

    code = "model_unusable"


class UploadRejected(MLError):
    """An uploaded model is wrong, damaged or hostile; ``code`` says in which way."""

    code = "upload_rejected"
