"""The ``nightferry`` command: the SDK from a terminal.

Exit status: 0 done; 1 failed; 2 wrong usage; 3 failed for now, the same call may work later;
4 ``verify`` found damaged files (and removed them).
"""

# ruff: noqa: T201 - a program for a terminal prints

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from nightferry import __version__, environment
from nightferry.client import ModelClient
from nightferry.errors import ConfigurationError, NightferryError
from nightferry.models import DownloadType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightferry.models import Model, ModelStatus, StoredFile, Transfer

DONE, FAILED, USAGE, TRY_LATER, DAMAGED = range(5)
_BAR_WIDTH = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace, ModelClient], int] = options.command
    try:
        with _client(options) as client:
            return command(options, client)
    except ConfigurationError as error:
        return _complain(options, error, USAGE)
    except NightferryError as error:
        return _complain(options, error, TRY_LATER if error.retryable else FAILED)
    except KeyboardInterrupt:
        print("\nStopped; what has arrived is kept.", file=sys.stderr)
        return FAILED


def _check(options: argparse.Namespace, client: ModelClient) -> int:
    update = client.check_for_update(_model(options))
    if update is None:
        return _say(options, _up_to_date(client, options.model), {"update": None})
    facts = {
        "label": update.label,
        "version": update.version,
        "kind": update.kind,
        "reason": update.reason,
        "notes": update.notes,
        "mandatory": update.mandatory,
        "size_bytes": update.size_bytes,
        "download_bytes": update.download_bytes,
        "held_back": update.held_back,
    }
    if update.kind == "rollback_to_embedded":
        sentence = f"The server wants {update.name} back on the embedded model."
    else:
        cost = _size(update.download_bytes) if update.download_bytes else "nothing"
        sentence = f"{update.name} {update.label} is available; {cost} to download."
    sentence += f" Not by itself: {update.held_back}." if update.held_back else ""
    return _say(options, sentence, {"update": facts})


def _fetch(options: argparse.Namespace, client: ModelClient) -> int:
    name = _model(options)
    before = client.status(name).current
    client.fetch_update(name, progress=_progress(options))
    model = client.activate(name)
    client.flush_events()
    if options.output:
        client.export_model(name, options.output)
    changed = before is None or (before.label, before.sha256) != (model.label, model.sha256)
    verb = "is in use now" if changed else "was up to date"
    sentence = f"{name} {model.label} {verb}: {_size(model.size_bytes)} at {model.path}"
    transfer = client.status(name).last_transfer if changed else None
    if transfer is not None and transfer.received_bytes < transfer.size_bytes:
        fetched, whole = _size(transfer.received_bytes), _size(transfer.size_bytes)
        sentence += f" (fetched {fetched} instead of {whole})"
    facts = {"changed": changed, "model": _facts(model), "transfer": _transfer_facts(transfer)}
    return _say(options, sentence, facts)


def _predict(options: argparse.Namespace, client: ModelClient) -> int:
    name = _model(options)
    client.get_model(name, DownloadType.LOCAL_MODEL, progress=_progress(options))
    predictor = client.load(name)
    answers = []
    for image in options.image:
        ranked = predictor.predict(image, top=options.top)
        answers.append(
            {"image": image, "predictions": [{"label": i, "probability": p} for i, p in ranked]}
        )
        if not options.json:
            shown = ", ".join(f"{label} {probability:.1%}" for label, probability in ranked)
            print(f"{image}: {shown}")
    if options.json:
        _print_json({"model": _facts(predictor.model), "images": answers})
    return DONE


def _status(options: argparse.Namespace, client: ModelClient) -> int:
    names = [options.model] if options.model else [m.name for m in client.list_models()]
    statuses = [client.status(name) for name in names]
    if options.json:
        _print_json({"cache_dir": str(client.cache_dir), "models": list(map(_as_facts, statuses))})
        return DONE
    print(f"Cache: {client.cache_dir}")
    for status in statuses:
        print(_status_sentence(status))
    if not statuses:
        print("No model yet. Get one: nightferry fetch --model NAME")
    return DONE


def _verify(options: argparse.Namespace, client: ModelClient) -> int:
    report = client.verify_cache()
    sentence = f"{report.checked} files, {_size(report.size_bytes)}: "
    sentence += "all intact." if report.ok else f"{len(report.damaged)} damaged and removed."
    facts = {
        "checked": report.checked,
        "size_bytes": report.size_bytes,
        "damaged": [str(path) for path in report.damaged],
    }
    _say(options, sentence, facts)
    return DONE if report.ok else DAMAGED


def _scan(options: argparse.Namespace, client: ModelClient) -> int:
    files = client.scan()
    if options.json:
        _print_json({"files": [_file_facts(file) for file in files]})
        return DONE
    for file in files:
        owner = f"{file.name} {file.label}" if file.name else file.sha256[:12]
        print(f"{_size(file.size_bytes):>10}  {file.role:<8}  {owner}")
    print(f"{len(files)} files, {_size(sum(file.size_bytes for file in files))}.")
    return DONE


def _prune(options: argparse.Namespace, client: ModelClient) -> int:
    report = client.prune(keep_previous=not options.all)
    facts = {"removed": [str(path) for path in report.removed], "freed_bytes": report.freed_bytes}
    sentence = f"{len(report.removed)} files removed, {_size(report.freed_bytes)} freed."
    return _say(options, sentence, facts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nightferry",
        description="Keep an image model fresh: check, download, verify, run.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 failed for now, "
        "4 verify found damage.",
    )
    parser.add_argument("--version", action="version", version=f"nightferry {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "check", _check, "ask the server whether there is something newer")
    fetch = _add(commands, "fetch", _fetch, "download, verify and put in use")
    fetch.add_argument("--output", metavar="FILE", help="copy the model there, with its manifest")
    predict = _add(commands, "predict", _predict, "run the model on images")
    predict.add_argument("image", nargs="+", metavar="IMAGE", help="an image file")
    predict.add_argument("--top", type=int, default=3, help="how many labels (default 3)")
    _add(commands, "status", _status, "say what is installed, without asking the server")
    _add(commands, "verify", _verify, "hash every stored file again")
    _add(commands, "scan", _scan, "list the files in the cache")
    prune = _add(commands, "prune", _prune, "remove files that no model needs")
    prune.add_argument("--all", action="store_true", help="also the way back to earlier releases")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace, ModelClient], int],
    purpose: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose.capitalize() + ".")
    parser.set_defaults(command=command)
    parser.add_argument("--server", metavar="URL", help="default: NIGHTFERRY_ENDPOINT")
    parser.add_argument("--model", metavar="NAME", help="the model's slug")
    parser.add_argument("--channel", default="production", help="default: production")
    parser.add_argument("--runtime", default="tflite", choices=["tflite", "coreml"])
    parser.add_argument("--cache-dir", metavar="DIR", help="default: NIGHTFERRY_HOME")
    parser.add_argument("--app-key", metavar="KEY", help="default: NIGHTFERRY_APP_KEY")
    parser.add_argument(
        "--trusted-root",
        metavar="FILE",
        help="the server's root.json, without which nothing is installed; "
        "default: NIGHTFERRY_TRUSTED_ROOT",
    )
    parser.add_argument(
        "--trust-on-first-use",
        action="store_true",
        help="believe the first root that the server hands out",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _client(options: argparse.Namespace) -> ModelClient:
    return ModelClient(
        options.server,
        app_key=options.app_key or os.environ.get("NIGHTFERRY_APP_KEY") or None,
        app_version=__version__,
        channel=options.channel,
        runtime=options.runtime,
        cache_dir=options.cache_dir,
        trusted_root=options.trusted_root or environment.trusted_root(),
        trust_on_first_use=options.trust_on_first_use,
    )


def _model(options: argparse.Namespace) -> str:
    if not options.model:
        raise ConfigurationError("Name the model: --model NAME")
    return str(options.model)


def _progress(options: argparse.Namespace) -> Callable[[int, int], None] | None:
    if options.json or not sys.stderr.isatty():
        return None

    def show(done_bytes: int, total_bytes: int) -> None:
        filled = _BAR_WIDTH * done_bytes // total_bytes
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        end = "\n" if done_bytes == total_bytes else ""
        line = f"\r[{bar}] {_size(done_bytes)} of {_size(total_bytes)}"
        print(line, end=end, file=sys.stderr, flush=True)

    return show


def _up_to_date(client: ModelClient, name: str) -> str:
    current = client.status(name).current
    if current is None:
        return f"The server has nothing for this device as {name}, and nothing is installed."
    return f"{name} {current.label} is up to date."


def _status_sentence(status: ModelStatus) -> str:
    current = status.current
    if current is None:
        return f"{status.name}: no model; {status.phase}"
    sentence = f"{status.name}: {current.label}, {current.state.value}, {current.precision or '?'}"
    sentence += f", {_size(current.size_bytes)}"
    if status.offered_label and status.offered_label != current.label:
        sentence += f"; {status.offered_label} is on offer ({status.phase})"
    return sentence + (f"; {status.held_back}" if status.held_back else "")


def _as_facts(status: ModelStatus) -> dict[str, object]:
    return {
        "name": status.name,
        "phase": status.phase,
        "current": _facts(status.current) if status.current else None,
        "staged": _facts(status.staged) if status.staged else None,
        "previous_label": status.previous_label,
        "pinned_labels": list(status.pinned_labels),
        "offered_label": status.offered_label,
        "held_back": status.held_back,
        "checked_at": status.checked_at,
        "refreshed_at": status.refreshed_at,
        "last_transfer": _transfer_facts(status.last_transfer),
    }


def _transfer_facts(transfer: Transfer | None) -> dict[str, object] | None:
    return None if transfer is None else asdict(transfer)


def _file_facts(file: StoredFile) -> dict[str, object]:
    return {**asdict(file), "path": str(file.path)}


def _facts(model: Model) -> dict[str, object]:
    enrolment = model.enrolment
    return {
        "name": model.name,
        "label": model.label,
        "version": model.version,
        "path": str(model.path),
        "size_bytes": model.size_bytes,
        "sha256": model.sha256,
        "runtime": model.runtime,
        "precision": model.precision,
        "labels": list(model.labels),
        "is_embedded": model.is_embedded,
        "state": model.state.value,
        "enrolment": {"rollout": enrolment.rollout, "arm": enrolment.arm} if enrolment else None,
    }


def _say(options: argparse.Namespace, sentence: str, facts: dict[str, object]) -> int:
    if options.json:
        _print_json(facts)
    else:
        print(sentence)
    return DONE


def _complain(options: argparse.Namespace, error: NightferryError, status: int) -> int:
    if options.json:
        facts = {"code": error.code, "detail": str(error), "retryable": error.retryable}
        _print_json({"error": facts})
    print(f"nightferry: {error}", file=sys.stderr)
    return status


def _print_json(facts: dict[str, object]) -> None:
    print(json.dumps(facts, indent=2, ensure_ascii=False))


def _size(size_bytes: int) -> str:
    """Return a size for people, in decimal units."""
    if size_bytes < 1000:  # noqa: PLR2004 - decimal units
        return f"{size_bytes} B"
    if size_bytes < 1_000_000:  # noqa: PLR2004
        return f"{size_bytes / 1000:.1f} kB"
    return f"{size_bytes / 1_000_000:.1f} MB"
