"""Blobs in an S3 bucket. The only module that knows boto3, which is imported on first use."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import urlsplit

from django.utils.http import content_disposition_header

from server.blobs.base import (
    CACHE_CONTROL,
    Blob,
    BlobStore,
    copy_hashed,
    key,
    sha256_of_key,
)
from server.blobs.errors import BlobNotFound, BlobStoreUnavailable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
ATTEMPTS = 4
# nginx asks at once.
ACCEL_EXPIRES_S = 60
MEMORY_BYTES = 8 * 2**20
READER_BUFFER_BYTES = 256 * 2**10
_FORGET_BROKEN_UPLOADS = {
    "ID": "forget-broken-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class S3Location:
    """Where a bucket is and how to enter it; None leaves the choice to the S3 client.

    ``public_endpoint`` is the address devices reach the bucket by, where it is not the server's.
    """

    bucket: str
    endpoint: str | None = None
    public_endpoint: str | None = None
    region: str | None = None
    prefix: str = ""
    access_key: str | None = None
    secret_key: str | None = None


class S3BlobStore(BlobStore):
    """Objects ``{prefix}sha256/ab/cd/abcd…`` in one bucket.

    A killed upload in parts leaves parts nobody sees; `prepare` gives the bucket a rule that
    removes them after a day.
    """

    def __init__(self, location: S3Location, *, part_bytes: int = 32 * 2**20) -> None:
        """Use a bucket that exists; ``part_bytes`` is at least 5 MiB by the rules of S3."""
        self.location = location
        self.part_bytes = part_bytes

    @functools.cached_property
    def _client(self) -> Any:
        return _connect(self.location, self.location.endpoint)

    @functools.cached_property
    def _public_client(self) -> Any:
        return _connect(self.location, self.location.public_endpoint or self.location.endpoint)

    def _object(self, sha256: str) -> dict[str, str]:
        return {"Bucket": self.location.bucket, "Key": self.location.prefix + key(sha256)}

    def put_stream(self, source: BinaryIO) -> Blob:
        """Keep the bytes in memory or a temporary file until their hash, the key, is known."""
        with tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES) as spool:
            blob = copy_hashed(source, cast("BinaryIO", spool))
            spool.seek(0)
            with self._translated(blob.sha256):
                if self._stored_size(blob.sha256) != blob.size_bytes:
                    self._upload(cast("BinaryIO", spool), blob)
        return blob

    def _upload(self, source: BinaryIO, blob: Blob) -> None:
        if blob.size_bytes <= self.part_bytes:
            content = source.read()
            self._client.put_object(
                **self._object(blob.sha256),
                Body=content,
                ContentMD5=_md5(content),
                CacheControl=CACHE_CONTROL,
            )
        else:
            self._upload_in_parts(source, blob)
        if self._stored_size(blob.sha256) != blob.size_bytes:
            message = f"The blob store (BLOB_STORE_URL) took {blob.sha256}, but does not have it."
            raise BlobStoreUnavailable(message)

    def _upload_in_parts(self, source: BinaryIO, blob: Blob) -> None:
        """Upload piece by piece; the object appears with the last call alone."""
        where = self._object(blob.sha256)
        upload = self._client.create_multipart_upload(**where, CacheControl=CACHE_CONTROL)
        where_part = {**where, "UploadId": upload["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            while content := source.read(self.part_bytes):
                number = len(parts) + 1
                answer = self._client.upload_part(
                    **where_part, PartNumber=number, Body=content, ContentMD5=_md5(content)
                )
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            self._client.complete_multipart_upload(**where_part, MultipartUpload={"Parts": parts})
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.abort_multipart_upload(**where_part)
            raise

    def open(self, sha256: str) -> BinaryIO:
        """Return a reader that asks for bytes as they are needed, and again after a failure."""
        size_bytes = self.size_bytes(sha256)
        raw = _S3Reader(self, sha256, size_bytes)
        return cast("BinaryIO", io.BufferedReader(raw, READER_BUFFER_BYTES))

    def size_bytes(self, sha256: str) -> int:
        """Return the object's size."""
        with self._translated(sha256):
            size_bytes = self._stored_size(sha256)
        if size_bytes is None:
            message = f"No blob {sha256} is stored."
            raise BlobNotFound(message)
        return size_bytes

    def exists(self, sha256: str) -> bool:
        """Tell whether the object is there."""
        with self._translated(sha256):
            return self._stored_size(sha256) is not None

    def _stored_size(self, sha256: str) -> int | None:
        from botocore.exceptions import ClientError

        try:
            return int(self._client.head_object(**self._object(sha256))["ContentLength"])
        except ClientError as error:
            if _status(error) == 404:  # noqa: PLR2004
                return None
            raise

    def delete(self, sha256: str) -> None:
        """Remove the object."""
        with self._translated(sha256):
            self._client.delete_object(**self._object(sha256))

    def iterate(self) -> Iterator[Blob]:
        """List the bucket; objects of other names are left out."""
        prefix = self.location.prefix
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.location.bucket, Prefix=f"{prefix}sha256/"
        )
        with self._translated():
            for page in pages:
                for found in page.get("Contents", []):
                    sha256 = sha256_of_key(found["Key"].removeprefix(prefix))
                    if sha256 is not None:
                        yield Blob(sha256, found["Size"])

    def presign(self, sha256: str, *, media_type: str, filename: str, expires_s: int) -> str | None:
        """Return a signed address; signing needs no request."""
        disposition = content_disposition_header(as_attachment=True, filename=filename)
        answer = {"ResponseContentType": media_type, "ResponseContentDisposition": disposition}
        with self._translated(sha256):
            url: str = self._public_client.generate_presigned_url(
                "get_object", Params={**self._object(sha256), **answer}, ExpiresIn=expires_s
            )
        return url

    def accel_path(self, sha256: str, *, media_type: str) -> str:
        """Return a signed path, which nginx fetches from the bucket's own server."""
        with self._translated(sha256):
            url: str = self._client.generate_presigned_url(
                "get_object",
                Params={**self._object(sha256), "ResponseContentType": media_type},
                ExpiresIn=ACCEL_EXPIRES_S,
            )
        parts = urlsplit(url)
        return f"s3{parts.path}?{parts.query}"

    def prepare(self) -> None:
        """Make the bucket if it is not there, and let it forget uploads that were broken off."""
        from botocore.exceptions import ClientError

        bucket = self.location.bucket
        with self._translated():
            try:
                self._client.head_bucket(Bucket=bucket)
            except ClientError as error:
                if _status(error) != 404:  # noqa: PLR2004
                    raise
                self._client.create_bucket(Bucket=bucket)
            try:
                self._client.put_bucket_lifecycle_configuration(
                    Bucket=bucket, LifecycleConfiguration={"Rules": [_FORGET_BROKEN_UPLOADS]}
                )
            except ClientError as error:
                log.warning("bucket %s keeps parts of broken-off uploads: %s", bucket, error)

    def healthy(self) -> bool:
        """Ask for the bucket."""
        try:
            with self._translated():
                self._client.head_bucket(Bucket=self.location.bucket)
        except (BlobStoreUnavailable, BlobNotFound) as error:
            log.warning("blob store s3://%s: %s", self.location.bucket, error.detail)
            return False
        return True

    def _get(self, sha256: str, start: int) -> Any:
        answer = self._client.get_object(**self._object(sha256), Range=f"bytes={start}-")
        return answer["Body"]

    @contextlib.contextmanager
    def _translated(self, sha256: str = "") -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if _status(error) == 404 and code != "NoSuchBucket":  # noqa: PLR2004
                message = f"No blob {sha256} is stored." if sha256 else "The bucket does not exist."
                raise BlobNotFound(message) from error
            message = (
                f"The blob store (BLOB_STORE_URL, bucket {self.location.bucket!r}) refused:"
                f" {code or _status(error)}."
            )
            raise BlobStoreUnavailable(message) from error
        except BotoCoreError as error:
            message = f"The blob store (BLOB_STORE_URL) cannot be used: {type(error).__name__}."
            raise BlobStoreUnavailable(message) from error


class _S3Reader(io.RawIOBase):
    """A seekable view of one object over one streaming answer, renewed after a seek or failure."""

    def __init__(self, store: S3BlobStore, sha256: str, size_bytes: int) -> None:
        super().__init__()
        self._store = store
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._position = 0
        self._body: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        position = base + offset
        if position < 0:
            message = f"negative seek position {position}"
            raise ValueError(message)
        if position != self._position:
            self._drop_body()
            self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if self._position >= self._size_bytes or not len(view):
            return 0
        for attempt in range(1, ATTEMPTS + 1):
            with self._store._translated(self._sha256):  # noqa: SLF001 - same module
                content = self._try_read(len(view), last=attempt == ATTEMPTS)
            if content:
                view[: len(content)] = content
                self._position += len(content)
                return len(content)
        message = f"The blob store (BLOB_STORE_URL) broke off in the middle of {self._sha256}."
        raise BlobStoreUnavailable(message)

    def _try_read(self, size_bytes: int, *, last: bool) -> bytes:
        """Return the next bytes; none where the connection broke and another try is due."""
        from botocore.exceptions import BotoCoreError

        try:
            if self._body is None:
                self._body = self._store._get(self._sha256, self._position)  # noqa: SLF001
            content: bytes = self._body.read(size_bytes)
        except BotoCoreError:
            self._drop_body()
            if last:
                raise
            return b""
        if not content:
            self._drop_body()
        return content

    def close(self) -> None:
        self._drop_body()
        super().close()

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _connect(location: S3Location, endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=location.region,
        aws_access_key_id=location.access_key,
        aws_secret_access_key=location.secret_key,
        config=Config(
            signature_version="s3v4",
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=32,
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Content-MD5 is checked by every S3 server; the newer checksums only by some.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
