"""Model cards: what a version is, what it was made from, how good it is and where it is weak.

After Mitchell and others, "Model Cards for Model Reporting", FAT* 2019 (arXiv 1810.03993). Every
figure comes with its count and its 95 % interval (Wilson 1927); weaknesses are sentences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.domain import maturity
from server.domain.promotion import shown_share
from server.registry.figures import figures, label_figures, version_maturity
from server.registry.models import ModelVersion
from server.training.models import TrainingRun

if TYPE_CHECKING:
    from server.registry.models import Variant
    from server.training.models import DatasetSnapshot

SPEC_VERSION = 1
_SPLITS = ("train", "validation", "test")
_MOST_CELLS = 5
_MOST_LABELS = 5
# An interval wider than this says little, and a card should say so.
_WIDE = 0.1


def model_card(version: ModelVersion) -> dict[str, Any]:
    """Return a version's card, ready for JSON."""
    run = _run(version)
    snapshot = _snapshot(version, run)
    data = _data(snapshot)
    metrics = _metrics(version)
    return {
        "spec_version": SPEC_VERSION,
        "details": _details(version),
        "data": data,
        "training": _training(version, run),
        "metrics": metrics,
        "variants": [_variant(variant) for variant in version.variants.all()],
        "gate": version.metrics.get("gate"),
        "weaknesses": _weaknesses(version, snapshot, data, metrics),
        "limits": _limits(version, data),
        "provenance": _provenance(version, snapshot),
    }


def _run(version: ModelVersion) -> TrainingRun | None:
    """Return the run that made the version, or that compiled it."""
    return version.runs.select_related("snapshot").order_by("created_at").first()


def _snapshot(version: ModelVersion, run: TrainingRun | None) -> DatasetSnapshot | None:
    """Return the photos of the run, or those of the version that this one was derived from."""
    if run is not None and run.snapshot is not None:
        return run.snapshot
    return version.model.snapshots.filter(pk=version.lineage.get("snapshot")).first()


def _details(version: ModelVersion) -> dict[str, Any]:
    return {
        "model": version.model.slug,
        "name": version.model.name,
        "description": version.model.description,
        "version": version.number,
        "state": version.state,
        "source": version.source,
        "architecture": version.architecture,
        "labels": version.labels,
        "follows": version.parent.number if version.parent else None,
        "notes": version.notes,
        "created_at": version.created_at,
        "published_at": version.published_at,
        "maturity": version_maturity(version),
    }


# --- Data -------------------------------------------------------------------------------------


def _data(snapshot: DatasetSnapshot | None) -> dict[str, Any] | None:
    """Return what the version was trained and measured on, as it was then."""
    if snapshot is None:
        return None
    facts, counts = snapshot.facts, snapshot.counts
    accepted, minimum = facts.get("accepted", {}), facts.get("min_photos_per_label", 0)
    by_split = {split: counts.get(split) or {} for split in _SPLITS}
    return {
        "photos": {split: sum(found.values()) for split, found in by_split.items()},
        "labels": [
            {
                "label": label,
                **{split: by_split[split].get(label, 0) for split in _SPLITS},
                "accepted": accepted.get(label),
                "maturity": maturity.label_maturity(accepted[label], minimum=minimum).value
                if label in accepted
                else None,
            }
            for label in dict.fromkeys((*snapshot.labels, *accepted))
        ],
        "thin": maturity.describe(accepted, minimum=minimum),
        "split_by": snapshot.split_by,
        "split_rule": _split_rule(snapshot),
        "contributors": facts.get("contributors"),
        "without_contributor": facts.get("without_contributor"),
        "max_contributor_share": facts.get("max_contributor_share"),
        "left_out_by_cap": counts.get("left_out_by_cap", 0),
        "left_out_as_copies": counts.get("left_out_as_copies", 0),
        "look_alikes": facts.get("look_alikes", 0),
        "golden": facts.get("golden", 0),
        "cameras": facts.get("cameras"),
        "received": facts.get("period") or None,
        "frozen_at": snapshot.created_at,
    }


def _split_rule(snapshot: DatasetSnapshot) -> str:
    pinned = "A photo's split never changes, and no night trains on a test photo."
    if snapshot.split_by == "photo":
        return (
            "Photo by photo, because fewer than three contributors are known; photos of one person"
            f" may stand on both sides. {pinned}"
        )
    rule = f"By contributor: all photos of one person share a split. {pinned}"
    if snapshot.split_by == "mixed":
        rule += (
            " Early photos, from when people were too few, were assigned one by one and stay so."
        )
    return rule


# --- Training ---------------------------------------------------------------------------------


def _training(version: ModelVersion, run: TrainingRun | None) -> dict[str, Any]:
    lineage = version.lineage
    return {
        "choice": _choice(lineage.get("choice")),
        "trials": list((lineage.get("choice") or {}).get("trials", ())),
        "weights": lineage.get("weights"),
        "outcome": run.outcome if run is not None else "",
        "run": str(run.pk) if run is not None else None,
        "started_at": run.started_at if run is not None else None,
        "finished_at": run.finished_at if run is not None else None,
    }


def _choice(choice: dict[str, Any] | None) -> str:
    """Return the sentence on how the version was tuned, which runs write since they choose."""
    return str((choice or {}).get("sentence", ""))


# --- Figures ----------------------------------------------------------------------------------


def _metrics(version: ModelVersion) -> dict[str, Any]:
    found = version.metrics
    return {
        "overall": figures(found),
        "golden": figures(found.get("golden") or {}),
        "log_loss": found.get("log_loss"),
        "per_label": [
            label_figures(name, row) for name, row in (found.get("per_label") or {}).items()
        ],
        "per_camera": [
            {"camera": camera, **(figures(row) or {})}
            for camera, row in (found.get("per_camera") or {}).items()
        ],
        "confusion": {"labels": version.labels, "rows": found.get("confusion")}
        if found.get("confusion")
        else None,
    }


def _variant(variant: Variant) -> dict[str, Any]:
    metrics = variant.metrics
    return {
        "runtime": variant.runtime,
        "precision": variant.precision,
        "sha256": variant.sha256,
        "size_bytes": variant.size_bytes,
        "figures": figures(metrics),
        "measured": metrics.get("measured", ""),
        "agreement": metrics.get("agreement"),
        "latency_ms": metrics.get("latency_ms"),
        "gate": metrics.get("gate"),
        "requires": variant.requires,
        "is_shipped": variant.is_shipped,
        "refusal": variant.refusal,
    }


# --- Weaknesses and limits --------------------------------------------------------------------


def _weaknesses(
    version: ModelVersion,
    snapshot: DatasetSnapshot | None,
    data: dict[str, Any] | None,
    metrics: dict[str, Any],
) -> list[str]:
    found = [
        *_of_sample(metrics["overall"]),
        *_of_labels(metrics),
        *_of_cells(metrics["confusion"]),
        *_of_cameras(metrics, data),
    ]
    if data is not None:
        found += _of_data(data)
    if snapshot is not None and snapshot.split_by != "contributor":
        found.append(f"The test figures may flatter. {_split_rule(snapshot)}")
    if version.source == ModelVersion.Source.UPLOADED:
        found.append(
            "The network was uploaded: what it was trained on is not known here, and the test"
            " photos may be among it."
        )
    found += [
        f"{variant.runtime} {variant.precision} is not shipped: {variant.refusal}"
        for variant in version.variants.all()
        if variant.refusal
    ]
    return found


def _of_sample(overall: dict[str, Any] | None) -> list[str]:
    if overall is None:
        return ["Nothing was measured: there were no test photos."]
    lower, upper = overall["interval"]
    if upper - lower <= _WIDE:
        return []
    sentence = (
        f"{overall['count']} test photos leave {lower:.1%} to {upper:.1%} open: differences of a"
        " few points between versions mean little."
    )
    return [sentence]


def _of_labels(metrics: dict[str, Any]) -> list[str]:
    """Name the labels that are found worst, and whether that can be told from the rest."""
    rows, overall = metrics["per_label"], metrics["overall"]
    unseen = [row["label"] for row in rows if not row["shown"]]
    found = [f"Not tested, for want of test photos: {_some(unseen)}."] if unseen else []
    tested = sorted((row for row in rows if row["shown"]), key=lambda row: row["recall"])
    if not tested or overall is None:
        return found
    clear = [row for row in tested if row["recall_interval"][1] < overall["accuracy"]]
    if clear:
        shown = [f"{row['label']} {_share(row)}" for row in clear[:_MOST_LABELS]]
        found.append(f"Found less often than the rest: {'; '.join(shown)}.")
    elif tested[0]["recall"] < 1:
        found.append(
            f"Found least often: {tested[0]['label']} {_share(tested[0])}; so few photos do not"
            " tell it from the rest."
        )
    return found


def _share(row: dict[str, Any]) -> str:
    return f"{shown_share(row['found'], row['shown'])} of {row['shown']}"


def _of_cells(confusion: dict[str, Any] | None) -> list[str]:
    """Name the most frequent mistakes that happened more than once."""
    if confusion is None:
        return []
    labels, rows = confusion["labels"], confusion["rows"]
    cells = [
        (count, labels[truth], labels[said], sum(row))
        for truth, row in enumerate(rows)
        for said, count in enumerate(row)
        if truth != said and count > 1
    ]
    worst = sorted(cells, key=lambda cell: (-cell[0], cell[1], cell[2]))[:_MOST_CELLS]
    shown = [f"{truth} for {said} {count} of {total}" for count, truth, said, total in worst]
    return [f"Most often mistaken: {'; '.join(shown)}."] if shown else []


def _of_cameras(metrics: dict[str, Any], data: dict[str, Any] | None) -> list[str]:
    rows, overall = metrics["per_camera"], metrics["overall"]
    if overall is None:
        return []
    known = sum(row["count"] for row in rows)
    if not known:
        return ["No test photo says its camera, so nothing is known of how cameras differ."]
    found = [
        f"Worse on {row['camera']}: {shown_share(row['correct'], row['count'])} of {row['count']}."
        for row in rows
        if row["interval"][1] < overall["accuracy"]
    ]
    if known < overall["count"]:
        found.append(f"{overall['count'] - known} of {overall['count']} test photos say no camera.")
    trained = ((data or {}).get("cameras") or {}).get("train") or {}
    if len(trained) == 1:
        found.append(
            f"All training photos that say their camera are of one: {next(iter(trained))}."
        )
    return found


def _of_data(data: dict[str, Any]) -> list[str]:
    found = [data["thin"]] if data["thin"] else []
    people = data["contributors"] or {}
    if people and sum(people.values()):
        found.append(
            f"Photos of {people['train']} contributors train and of {people['test']} test: how"
            " the network does with other people's photos is known that far."
        )
    if data["look_alikes"]:
        found.append(
            f"{data['look_alikes']} photos look like one on the other side of the split, by"
            " somebody else; they may make the test easier."
        )
    return found


def _limits(version: ModelVersion, data: dict[str, Any] | None) -> list[str]:
    if version.signature.get("task") == "other":
        return _limits_of_other(version)
    found = [
        (
            f"It answers with one of {len(version.labels)} labels whatever the photo shows, also"
            " where it shows none of them."
        ),
        "Its probabilities are not calibrated; a high one is no promise.",
        (
            "It was measured for telling these labels apart on photos such as volunteers send."
            " Decisions that may harm somebody must not rest on it alone."
        ),
    ]
    if data is not None and data["received"]:
        first, last = data["received"]
        found.append(f"Its photos were received from {first} to {last}; later ones may differ.")
    if any(v.runtime == "coreml" and v.is_shipped for v in version.variants.all()):
        found.append("Core ML files are checked on this server, never on a device of Apple's.")
    return found


def _limits_of_other(version: ModelVersion) -> list[str]:
    """Return what holds for an upload that is no classifier."""
    unrun = [v for v in version.variants.all() if v.is_shipped and not v.selftest]
    found = [
        "It is no classifier and was uploaded: how good its answers are was not measured here.",
        "Its files were compared on drawn inputs, not on photos.",
    ]
    if unrun:
        names = ", ".join(f"{v.runtime} {v.precision}" for v in unrun)
        found.append(f"Not run before it is delivered, nor tested on devices: {names}.")
    return found


# --- Provenance -------------------------------------------------------------------------------


def _provenance(version: ModelVersion, snapshot: DatasetSnapshot | None) -> dict[str, Any]:
    lineage = version.lineage
    return {
        "snapshot": snapshot.pk if snapshot is not None else None,
        "snapshot_digest": lineage.get("snapshot_digest")
        or (snapshot.digest if snapshot is not None else None),
        "seed": lineage.get("seed"),
        "pins": lineage.get("pins"),
        "pretrained_sha256": lineage.get("weights_sha256"),
        "weights_sha256": version.weights_sha256,
        "source_sha256": version.source_sha256,
        "licence": lineage.get("licence"),
        "attested_by": _attested_by(version.attestation),
        "releases": [
            f"{release.channel.name} {release.label}"
            for release in version.releases.select_related("channel").order_by("pk")
        ],
    }


def _attested_by(attestation: str) -> str | None:
    """Return who says that they made it. Whoever signs checks that; a web process has no key."""
    parts = attestation.split(":")
    return parts[1] if len(parts) > 1 else None


def _some(labels: list[str], most: int = 8) -> str:
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more
