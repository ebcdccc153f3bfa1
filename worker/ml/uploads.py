"""Models that people bring: what they are, and whether they may come in.

An uploaded model is a stranger's program. Archives are looked through before anything is
unpacked, what Keras would run as code is refused by name, and the file itself is opened only in
a child process with limits on memory and time, which may die of it.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from worker.ml import signatures
from worker.ml.compilers import mlpackage
from worker.ml.errors import PreprocessingUnknown, UploadRejected
from worker.ml.preprocessing import Preprocessing

Kind = Literal["keras", "tflite", "mlpackage", "mlmodel"]
Task = Literal["classification", "other"]

MAX_BYTES: Final = 1 << 30
_MAX_TENSORS: Final = 256
_MAX_VALUES: Final = 1 << 26
_CHILD_TIMEOUT_S: Final = 180
_CHILD_MEMORY_BYTES: Final = 12 << 30
_MAX_LAYER_WIDTH: Final = 1 << 16
_MAX_CONFIG_BYTES: Final = 16 << 20
_PACKAGE: Final = Path(__file__).resolve().parents[2]
# All that the child gets of the worker's environment, which holds secrets.
_KEPT_VARIABLES: Final = (
    "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL",
    "KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "TF_ENABLE_ONEDNN_OPTS", "TF_DETERMINISTIC_OPS",
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)  # fmt: skip

_CODE_CLASSES: Final = frozenset({
    "Lambda", "__lambda__", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper",
})  # fmt: skip
# These read files that a configuration names.
_FILE_CLASSES: Final = frozenset({"StringLookup", "IntegerLookup", "TextVectorization"})
_WIDTHS: Final = frozenset({"units", "filters", "output_dim", "input_dim", "key_dim"})


@dataclass(frozen=True)
class Inspected:
    """What an uploaded model is, and what it answers.

    ``task`` is ``classification`` where it takes one photo and answers with one number for each
    label, else ``other``. ``inputs`` and ``outputs`` are ``{"name", "shape", "dtype"}``, of
    quantised integers with ``scale`` and ``zero_point``; an open side is None. ``labels`` and
    ``preprocessing`` are None where the file does not tell. ``content`` is what to keep in place
    of the upload where that was put in order, else None. ``warnings`` are sentences.

    ``selftest`` is what devices compare with (``worker.ml.vectors``); empty where the file was
    not run, and then ``unchecked`` says why. Keras networks are run once they are compiled.
    """

    kind: Kind
    runtime: str | None
    """The runtime that takes the file as it is; None for Keras, which has to be compiled."""
    precision: str | None
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    task: Task = "other"
    labels: list[str] | None = None
    preprocessing: Preprocessing | None = None
    requires: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    content: bytes | None = field(default=None, repr=False)
    warnings: list[str] = field(default_factory=list)
    selftest: dict[str, Any] = field(default_factory=dict)
    selftest_sentence: str = ""
    latency_ms: dict[str, Any] = field(default_factory=dict)
    unchecked: str = ""
    foreign_operators: list[str] = field(default_factory=list)


def inspect_upload(
    path: Path,
    filename: str,
    *,
    labels: Sequence[str] | None = None,
    known_labels: Sequence[str] = (),
    task: Task | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Inspected:
    """Return what the file at ``path`` is; ``filename`` is the name that it came with.

    Args:
        path: the file.
        filename: its ending decides where the content does not.
        labels: those stated at the upload; of a classifier their number has to fit, and their
            order where the file names its own.
        known_labels: the model's, which hold for a classifier that names none.
        task: what it is said to be; None finds out.
        preprocessing: as stated at the upload; a photo is drawn by it.

    Raises:
        UploadRejected: ``code`` says in which way it is wrong, damaged or hostile.

    """
    size = path.stat().st_size
    if size == 0:
        _reject("upload_empty", "The file is empty.")
    if size > MAX_BYTES:
        _reject("upload_too_large", f"The file has {size} bytes; {MAX_BYTES} are taken at most.")
    kind = _find_kind(path, filename)
    content = None
    with tempfile.TemporaryDirectory() as folder:
        opened = path
        if kind == "keras":
            _check_keras(path)
        elif kind == "mlpackage":
            package = _unpack(path)
            content = mlpackage.pack(package, _stem(filename))
            package.write(Path(folder))
            opened = Path(folder, mlpackage.DATA, package.root)
        facts = _ask_child(kind, opened, preprocessing or {})
    inspected = _inspected(kind, facts, content)
    _check_signature(inspected)
    found = _decide_task(inspected, labels or inspected.labels or list(known_labels), task)
    if found == "classification" and labels is not None:
        _check_labels(inspected, labels)
    return replace(inspected, task=found)


def _find_kind(path: Path, filename: str) -> Kind:
    """By content; the name decides only where the content cannot."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[:4] == b"PK\x03\x04":
        names = _entry_names(path)
        if "config.json" in names:
            return "keras"
        if any(posixpath.basename(name) == mlpackage.MANIFEST for name in names):
            return "mlpackage"
        _reject("kind_unknown", "The archive holds neither a Keras model nor an .mlpackage.")
    ending = filename.lower().rpartition(".")[2]
    if ending == "mlmodel":
        return "mlmodel"
    code, sentence = _name_unknown(filename, ending, head)
    return _reject(code, sentence)


def _name_unknown(filename: str, ending: str, head: bytes) -> tuple[str, str]:
    """Say what is wrong with a file whose content is nothing known."""
    if head == b"\x89HDF\r\n\x1a\n":
        return "kind_unknown", "This is an HDF5 file; save the model as .keras instead."
    if ending in {"keras", "zip", "mlpackage"}:
        return "archive_damaged", f"{filename} is not a readable archive; it may be cut short."
    if ending == "tflite":
        return "tflite_damaged", f"{filename} does not begin like a TFLite file."
    return (
        "kind_unknown",
        f"{filename} is none of .keras, .tflite, zipped .mlpackage and .mlmodel.",
    )


def _entry_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        _reject("archive_damaged", f"The archive cannot be read: {error}.")


def _unpack(path: Path) -> mlpackage.Package:
    try:
        return mlpackage.unpack(path, max_bytes=MAX_BYTES)
    except mlpackage.PackageInvalid as error:
        raise UploadRejected(error.sentence, code=error.code) from error


# --- Keras ------------------------------------------------------------------------------------


def _check_keras(path: Path) -> None:
    """Refuse what would run code or read files, before Keras sees any of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                mlpackage.check_entry(entry)
            mlpackage.check_sizes(entries, MAX_BYTES)
            config = archive.getinfo("config.json")
            if config.file_size > _MAX_CONFIG_BYTES:
                _reject("archive_too_large", f"config.json has {config.file_size} bytes.")
            described = json.loads(archive.read(config))
            if "model.weights.h5" not in archive.namelist():
                _reject("keras_damaged", "The .keras file lacks model.weights.h5.")
            if archive.testzip() is not None:
                _reject("archive_damaged", "The .keras file is damaged: a checksum is wrong.")
    except mlpackage.PackageInvalid as error:
        raise UploadRejected(error.sentence, code=error.code) from error
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, RuntimeError) as error:
        _reject("archive_damaged", f"The .keras file cannot be read: {error}.")
    except (ValueError, RecursionError) as error:
        _reject("keras_damaged", f"The .keras file's configuration cannot be read: {error}.")
    for part in _walk(described):
        _check_part(part)


def _walk(described: Any) -> Iterator[dict[str, Any]]:
    waiting = [described]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _check_part(part: dict[str, Any]) -> None:
    name = part.get("class_name")
    module = part.get("module")
    if name in _CODE_CLASSES:
        _reject("keras_code_inside", f"The model holds code to be run ({name}); none is taken.")
    if name in _FILE_CLASSES:
        _reject("keras_layer_refused", f"The model holds a {name}, which an image model lacks.")
    if isinstance(name, str) and isinstance(module, str) and module.split(".")[0] != "keras":
        _reject("keras_code_inside", f"The model needs {module}.{name}, which Keras has not.")
    registered = part.get("registered_name")
    if isinstance(registered, str) and ">" in registered and not registered.startswith("keras"):
        _reject("keras_code_inside", f"The model needs code of its own ({registered}).")
    for key in _WIDTHS & part.keys():
        if isinstance(part[key], int) and part[key] > _MAX_LAYER_WIDTH:
            _reject("keras_too_large", f"A layer of the model has {key}={part[key]}.")


# --- the child --------------------------------------------------------------------------------


def _ask_child(kind: Kind, path: Path, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment |= {"PYTHONPATH": str(_PACKAGE), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "worker.ml.uploads_child", kind, str(path)]
    try:
        done = subprocess.run(
            [*command, str(_CHILD_MEMORY_BYTES), json.dumps(dict(preprocessing))],
            capture_output=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=_CHILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _reject("upload_too_slow", f"Opening the model took over {_CHILD_TIMEOUT_S} s.")
    # Libraries print what they like; the answer is the last line.
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        _reject(f"{kind}_damaged", f"Opening the model ended the process that tried it ({how}).")
    if "code" in answer:
        _reject(str(answer["code"]), str(answer["sentence"]))
    return dict(answer)


def _inspected(kind: Kind, facts: dict[str, Any], content: bytes | None) -> Inspected:
    manifest = facts.get("preprocessing")
    warnings = list(facts.get("warnings", []))
    preprocessing = None
    if manifest is not None:
        try:
            preprocessing = Preprocessing.from_manifest(manifest)
        except PreprocessingUnknown as error:
            warnings.append(error.sentence)
    return Inspected(
        kind=kind,
        runtime={"keras": None, "tflite": "tflite"}.get(kind, "coreml"),
        precision=facts.get("precision"),
        inputs=facts["inputs"],
        outputs=facts["outputs"],
        labels=facts.get("labels"),
        preprocessing=preprocessing,
        requires=facts.get("requires", {}),
        parameters=facts.get("parameters"),
        content=content,
        warnings=[*warnings, *facts.get("notes", [])],
        selftest=facts.get("selftest", {}),
        selftest_sentence=facts.get("selftest_sentence", ""),
        latency_ms=facts.get("latency_ms", {}),
        unchecked=facts.get("unchecked", ""),
        foreign_operators=facts.get("foreign_operators", []),
    )


def _check_signature(inspected: Inspected) -> None:
    tensors = [*inspected.inputs, *inspected.outputs]
    if not inspected.inputs or not inspected.outputs or len(tensors) > _MAX_TENSORS:
        _reject(
            "signature_unusable",
            f"The model has {len(inspected.inputs)} inputs and {len(inspected.outputs)} outputs;"
            f" there has to be one of each, and {_MAX_TENSORS} are taken in all.",
        )
    for one in inspected.inputs:
        if math.prod(side or 1 for side in one["shape"]) > _MAX_VALUES:
            _reject("signature_unusable", f"An input of the model has the shape {one['shape']}.")


def _decide_task(inspected: Inspected, labels: Sequence[str], wanted: Task | None) -> Task:
    """Return what the model is for; a classifier by its outside has to have labels that fit."""
    inputs = [signatures.Tensor.from_json(one) for one in inspected.inputs]
    outputs = [signatures.Tensor.from_json(one) for one in inspected.outputs]
    if wanted == "other":
        return "other"
    if signatures.is_classifier(inputs, outputs, labels):
        return "classification"
    answers = signatures.class_count(inputs, outputs)
    if answers is None or (not labels and wanted is None):
        if wanted is None:
            return "other"
        shapes = ", ".join(f"{one.name} {list(one.shape)}" for one in outputs)
        _reject("not_classifier", f"The model is no classifier of photos: it answers {shapes}.")
    return _reject(
        "label_count_mismatch",
        f"The network answers with {answers} numbers, and there are {len(labels)} labels"
        f" ({', '.join(labels[:12])}). Give the labels in the order of the outputs; or, if it is"
        " no classifier, say that its task is another.",
    )


def _check_labels(inspected: Inspected, labels: Sequence[str]) -> None:
    named = inspected.labels
    if named is not None and len(named) != len(labels):
        _reject(
            "label_count_mismatch",
            f"The file names {len(named)} labels, the model has {len(labels)}.",
        )
    if named is not None and named != list(labels):
        pairs = list(zip(named, labels, strict=True))
        place = next(index for index, (theirs, ours) in enumerate(pairs) if theirs != ours)
        order = "in another order" if sorted(named) == sorted(labels) else "others"
        _reject(
            "labels_mismatch",
            f"The file's labels are {order}: number {place + 1} is "
            f"{named[place]!r} in the file and {labels[place]!r} in the model.",
        )


def _stem(filename: str) -> str:
    base = posixpath.basename(filename.replace("\\", "/"))
    for ending in (".zip", ".mlpackage"):
        base = base.removesuffix(ending)
    kept = "".join(letter for letter in base if letter.isalnum() or letter in "-_.")
    return kept.strip(".") or "model"


def _reject(code: str, sentence: str) -> NoReturn:
    raise UploadRejected(sentence, code=code)
