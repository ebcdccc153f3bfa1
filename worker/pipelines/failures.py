"""What stops a run, as an error that says whether to begin again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from server.blobs import BlobNotFound
from server.domain.errors import Unavailable, Unprocessable
from worker.ml.errors import MLError


@contextlib.contextmanager
def as_sentences() -> Iterator[None]:
    """Turn what tensors and store raise into errors of the domain.

    Raises:
        Unprocessable: what the tensors refused, with their code.
        Unavailable: ``photo_withdrawn``; the job is tried again, without the photo.

    """
    try:
        yield
    except MLError as error:
        raise Unprocessable(str(error), code=error.code) from error
    except BlobNotFound as error:
        message = "A photo or file was removed while the run read it; it starts again without it."
        raise Unavailable(message, code="photo_withdrawn") from error
