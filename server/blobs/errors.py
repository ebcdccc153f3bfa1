"""What can go wrong with stored bytes.

::

    InvalidInput  ── InvalidBlobName        400  invalid_sha256
    NotFound      ── BlobNotFound           404  blob_not_found
    DomainError   ── BlobCorrupted          500  blob_corrupted
    Unavailable   ── BlobStoreUnavailable   503  blob_store_unavailable
"""

from __future__ import annotations

from server.domain.errors import DomainError, InvalidInput, NotFound, Unavailable


class InvalidBlobName(InvalidInput):
    """A blob's name is the sha256 of its content: 64 lower-case hexadecimal digits."""

    default_code = "invalid_sha256"


class BlobNotFound(NotFound):
    """Nothing with this hash is stored."""

    default_code = "blob_not_found"


class BlobCorrupted(DomainError):
    """What is stored no longer has the hash it is stored under."""

    default_code = "blob_corrupted"
    title = "Stored data is damaged"


class BlobStoreUnavailable(Unavailable):
    """The store does not answer, refuses our credentials, or is full."""

    default_code = "blob_store_unavailable"
