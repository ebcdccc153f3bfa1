"""Core ML files as they lie on disk: a zipped or plain ``.mlpackage``, or a ``.mlmodel``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from worker.ml.compilers import mlpackage
from worker.ml.compilers.mlpackage import PackageInvalid

_ZIP: Final = b"PK\x03\x04"


@contextlib.contextmanager
def opened(source: Path | bytes) -> Iterator[tuple[Any, Path]]:
    """Give the specification (protobuf) and the folder of its weights, for as long as it is open.

    Raises :class:`~worker.ml.compilers.mlpackage.PackageInvalid`.
    """
    if isinstance(source, Path) and source.is_dir():
        found = sorted(source.glob("Data/*/*.mlmodel"))
        if len(found) != 1:
            raise PackageInvalid(f"The folder holds {len(found)} specifications, not 1")
        yield parse(found[0].read_bytes()), found[0].parent / "weights"
        return
    content = source if isinstance(source, bytes) else source.read_bytes()
    if not content.startswith(_ZIP):
        yield parse(content), Path()
        return
    package = mlpackage.unpack(content)
    with tempfile.TemporaryDirectory() as folder:
        yield parse(package.specification), package.write(Path(folder))


def parse(content: bytes) -> Any:
    """Return the specification; raises PackageInvalid."""
    from worker.ml.compilers.coreml import quiet

    with quiet() as ct:
        specification = ct.proto.Model_pb2.Model()
    try:
        specification.ParseFromString(content)
    except Exception as error:  # protobuf's error class is nowhere public
        raise PackageInvalid(f"The specification cannot be read: {_first_line(error)}") from error
    if specification.WhichOneof("Type") is None or not specification.description.input:
        raise PackageInvalid("The file holds no Core ML model")
    return specification


def decode(specification: Any, weights_folder: Path) -> Any:
    """Return the ML Program with its weights read from the files of the folder.

    Raises :class:`~worker.ml.compilers.mlpackage.PackageInvalid`.
    """
    from worker.ml.compilers.coreml import quiet

    kind = specification.WhichOneof("Type")
    if kind != "mlProgram":
        raise PackageInvalid(f"The package holds a {kind}, not an ML Program")
    with quiet():
        from coremltools.converters.mil.frontend.milproto.load import load

        try:
            return load(
                specification,
                specification_version=specification.specificationVersion,
                file_weights_dir=str(weights_folder),
            )
        except Exception as error:  # the decoder has no error class of its own
            raise PackageInvalid(f"The package cannot be decoded: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
