"""Import folders of photos, ``DIR/<label>/<file>``, or the files of MNIST or CIFAR."""

from __future__ import annotations

import io
import re
import sys
from argparse import ArgumentParser
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from django.core.management.base import BaseCommand, CommandError

from server.domain.errors import DomainError, NotFound
from server.domain.policy import TrainingPolicy
from server.photos import actions, intake
from server.photos.datasets import Dataset, Tile, read_dataset
from server.registry.actions import create_model
from server.registry.models import Label, Model
from server.registry.queries import get_model, training_policy

# Decoding is most of the work and happens in other processes; a few photos are in flight.
_THREADS = 2
_IN_FLIGHT = 16
_PROGRESS_EVERY = 25


# Name in messages, label, and how to open it.
_Found = tuple[str, str, Callable[[], IO[bytes]]]


@dataclass(frozen=True)
class _File:
    open: Callable[[], IO[bytes]]
    name: str
    label: Label
    contributor: str


class Command(BaseCommand):
    help = (
        "Import DIR/<label>/<file> photos, MNIST's idx files or CIFAR's batches in DIR; a model"
        " that is missing is made from what is found."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", metavar="MODEL", help="the model's slug")
        parser.add_argument("folder", metavar="DIR", type=Path, help="where the photos are")
        parser.add_argument("--accept", action="store_true", help="accept the photos at once")
        parser.add_argument(
            "--volunteer-from",
            metavar="PATTERN",
            help="regular expression over <label>/<file>; its first group names who took the photo",
        )
        parser.add_argument(
            "--per-label", metavar="COUNT", type=int, help="take the first COUNT of each label only"
        )

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        folder: Path = options["folder"]
        if not folder.is_dir():
            raise CommandError(f"{folder} is not a folder.")
        pattern = _compiled(options["volunteer_from"])
        try:
            dataset = read_dataset(folder)
        except DomainError as error:
            raise CommandError(f"{error.detail} ({error.code})") from error
        if dataset is None:
            model, found = self._from_folders(options["model"], folder)
        else:
            model, found = self._from_dataset(options["model"], dataset)
        files = list(_files(model, found, pattern, most=options["per_label"]))
        outcome = self._import(model, files, is_accepted=options["accept"])
        self._summarise(model, outcome, is_accepted=options["accept"])

    def _from_folders(self, slug: str, folder: Path) -> tuple[Model, list[_Found]]:
        folders = _label_folders(folder)
        model = self._model(slug, [label.name for label in folders], {})
        known = {label.name for label in model.labels.all()}
        found: list[_Found] = []
        for label in folders:
            paths = sorted(path for path in label.iterdir() if _is_candidate(path))
            if label.name not in known:
                self._leave_out(model, f"{label.name}/", len(paths))
                continue
            found += [
                (f"{label.name}/{path.name}", label.name, partial(_opened, path)) for path in paths
            ]
        return model, found

    def _from_dataset(self, slug: str, dataset: Dataset) -> tuple[Model, list[_Found]]:
        side = dataset.side_px
        smaller = side < TrainingPolicy.min_side_px
        model = self._model(slug, dataset.labels, {"min_side_px": side} if smaller else {})
        least = training_policy(model).min_side_px
        if side < least:
            raise CommandError(
                f"The pictures are {side} px high or wide, and {slug} takes none below {least} px;"
                f" set min_side_px to {side} in its policy. (too_small)"
            )
        known = {label.name for label in model.labels.all()}
        for label in dataset.labels:
            if label not in known:
                self._leave_out(model, label, sum(tile.label == label for tile in dataset.tiles))
        self.stdout.write(f"{len(dataset.tiles)} pictures of {dataset.kind}.")
        return model, [
            (tile.name, tile.label, partial(_png, tile))
            for tile in dataset.tiles
            if tile.label in known
        ]

    def _model(self, slug: str, labels: list[str], policy: dict[str, Any]) -> Model:
        try:
            return get_model(slug)
        except NotFound:
            model = create_model(slug=slug, name=slug, labels=labels, training_policy=policy)
            self.stdout.write(f"Made the model {slug} with {len(labels)} labels.")
            return model

    def _leave_out(self, model: Model, what: str, count: int) -> None:
        known = ", ".join(label.name for label in model.labels.all())
        self.stderr.write(
            f"{what}: left out, {model.slug} has no such label ({count} files; it has {known})"
        )

    def _import(self, model: Model, files: list[_File], *, is_accepted: bool) -> Counter[str]:
        outcome: Counter[str] = Counter()
        for done, (file, examined) in enumerate(_examined(model, files), 1):
            try:
                found = examined.result()
                outcome[_stored(model, file, found, is_accepted=is_accepted)] += 1
            except DomainError as error:
                outcome[f"refused ({error.code})"] += 1
                self.stderr.write(f"{file.name}: {error.detail}")
            except OSError as error:
                outcome["unreadable"] += 1
                self.stderr.write(f"{file.name}: cannot be read ({error.strerror})")
            self._show(done, len(files))
        return outcome

    def _show(self, done: int, total: int) -> None:
        if sys.stdout.isatty():
            self.stdout.write(f"\r{done}/{total}", ending="" if done < total else "\n")
        elif done % (_PROGRESS_EVERY * 4) == 0 or done == total:
            self.stdout.write(f"{done}/{total}")

    def _summarise(self, model: Model, outcome: Counter[str], *, is_accepted: bool) -> None:
        said = ", ".join(f"{count} {what}" for what, count in outcome.most_common())
        self.stdout.write(f"{model.slug}: {said or 'no photos found'}.")
        if outcome["imported"] and not is_accepted:
            self.stdout.write("They wait for review; --accept would have accepted them.")


def _label_folders(folder: Path) -> list[Path]:
    labels = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not labels:
        raise CommandError(f"{folder} holds no folders; each label needs a folder of its own.")
    return labels


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _png(tile: Tile) -> IO[bytes]:
    return io.BytesIO(tile.png())


def _files(
    model: Model, found: Iterable[_Found], pattern: re.Pattern[str] | None, *, most: int | None
) -> Iterator[_File]:
    labels = {label.name: label for label in model.labels.all()}
    taken: Counter[str] = Counter()
    for name, label, opener in found:
        if most is None or taken[label] < most:
            taken[label] += 1
            yield _File(opener, name, labels[label], _contributor(pattern, name))


def _is_candidate(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name != "Thumbs.db"


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise CommandError(f"--volunteer-from is not a regular expression: {error}.") from error
    if compiled.groups < 1:
        raise CommandError("--volunteer-from needs a group, ([^_]+)_ for example, around the name.")
    return compiled


def _contributor(pattern: re.Pattern[str] | None, name: str) -> str:
    match = pattern.search(name) if pattern is not None else None
    return (match.group(1) or "")[:200] if match else ""


def _examined(
    model: Model, files: Iterable[_File]
) -> Iterator[tuple[_File, Future[intake.Intake | None]]]:
    """Yield each file with its examination, a few of them under way ahead of the reader."""
    # Nobody can take these again, so blur is noted on the photo rather than refused.
    limits = replace(actions.limits_of(model), refuse_blurred=False)
    known = actions.imported_digests(model)
    waiting = iter(files)
    with ThreadPoolExecutor(_THREADS) as pool:
        started = ((file, pool.submit(_examine, file, limits, known)) for file in waiting)
        ahead = deque(islice(started, _IN_FLIGHT))
        while ahead:
            yield ahead.popleft()
            ahead.extend(islice(started, 1))


def _examine(file: _File, limits: intake.Limits, known: dict[str, int]) -> intake.Intake | None:
    """Return what the file holds, None where this very file was imported before as this label."""
    with file.open() as source:
        digest = actions.keyed_digest(intake.bounded_sha256(source, limits.max_bytes))
        if known.get(digest) == file.label.pk:
            return None
        return intake.examine(source, limits=limits)


def _stored(model: Model, file: _File, found: intake.Intake | None, *, is_accepted: bool) -> str:
    if found is None:
        return "already there"
    _, is_new = actions.import_photo(
        model=model,
        label=file.label,
        found=found,
        contributor=file.contributor,
        is_accepted=is_accepted,
    )
    return "imported" if is_new else "already there"
