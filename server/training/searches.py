"""Budget searches: asking for one, what it found, and making a finalist the model's policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import transaction

from server.domain.budgets import Budget
from server.domain.errors import Conflict, NotFound
from server.http import audit
from server.http.bubbles import Bubble, bubble_chart
from server.http.pages import size
from server.registry import actions as registry
from server.registry.figures import shown
from server.registry.queries import training_policy
from server.training.actions import request_run
from server.training.models import BudgetSearch, TrainingRun

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

    from server.registry.models import Model
    from server.training.actions import Actor


def request_search(*, model: Model, budget: Mapping[str, Any], actor: Actor = None) -> TrainingRun:
    """Queue the run that searches the model's best network within a budget.

    Raises:
        InvalidInput: ``invalid_budget``.
        Conflict: as ``request_run``.

    """
    wanted = Budget.read(budget)
    with transaction.atomic():
        run = request_run(model=model, trigger="search", kind=TrainingRun.Kind.SEARCH, actor=actor)
        BudgetSearch.objects.create(run=run, budget=wanted.to_json())
    return run


def get_search(run: TrainingRun) -> BudgetSearch:
    """Return what a run searches.

    Raises:
        NotFound: ``unknown_search``: it is a run of another kind.

    """
    try:
        return BudgetSearch.objects.get(run=run)
    except BudgetSearch.DoesNotExist as error:
        message = f"Run {run.pk} is no budget search."
        raise NotFound(message, code="unknown_search") from error


def record_result(
    *,
    search: BudgetSearch,
    candidates: Sequence[Mapping[str, Any]],
    chosen: int | None,
    sentence: str,
) -> None:
    """Write what a search has found so far; what an attempt before it found is replaced."""
    search.candidates, search.chosen, search.sentence = list(candidates), chosen, sentence
    search.save(update_fields=["candidates", "chosen", "sentence"])


def policy_of(search: BudgetSearch, place: int) -> dict[str, Any]:
    """Return the members of a policy that train and compile a finalist every night.

    Kinds for Core ML stay as they are: the search compares TFLite files.

    Raises:
        NotFound: ``unknown_candidate``.
        Conflict: ``not_a_finalist``: it was dropped before a file was made of it.

    """
    if not 0 <= place < len(search.candidates):
        message = f"The search has {len(search.candidates)} candidates, counted from 0."
        raise NotFound(message, code="unknown_candidate")
    candidate = search.candidates[place]
    if not candidate["precision"]:
        message = f"{candidate['network']} at {candidate['depth']} was dropped before the finals."
        raise Conflict(message, code="not_a_finalist")
    kept = [
        kind
        for kind in training_policy(search.run.model).variants
        if not kind.startswith("tflite:")
    ]
    return {
        "architecture": candidate["network"],
        "strategy": "linear",
        "depth": candidate["depth"],
        "variants": [f"tflite:{candidate['precision']}", *kept],
    }


@transaction.atomic
def adopt_candidate(*, search: BudgetSearch, place: int, actor: Actor) -> Model:
    """Make a finalist what the model trains from the next night on.

    Raises:
        NotFound, Conflict: as ``policy_of``.

    """
    policy = policy_of(search, place)
    audit.record(actor=actor, action="search.adopt", subject=search.run, detail=policy)
    return registry.change_model(model=search.run.model, training_policy=policy, actor=actor)


@dataclass(frozen=True)
class Row:
    """One candidate as people read it."""

    place: int
    network: str
    part: str
    size: str
    accuracy: str
    test: str
    latency: str
    multiply_adds: str
    fate: str
    is_file: bool
    is_chosen: bool

    @property
    def name(self) -> str:
        """Return the network, where it ends, and the file's precision."""
        return f"{self.network} {self.part}"

    def as_words(self) -> tuple[str, ...]:
        """Return the cells of a line in a terminal."""
        mark = "*" if self.is_chosen else " "
        return (
            f"{mark} {self.name:<52}",
            f"{self.size:>12}",
            f"{self.accuracy:<34}",
            f"{self.latency:>10}",
            f"{self.multiply_adds:>8}",
            f"test {self.test}" if self.test else "",
            self.fate,
        )


def candidate_rows(search: BudgetSearch) -> list[Row]:
    """Return every candidate: the finalists' files first, then who was dropped, the last first."""
    return [
        _row(place, facts, is_chosen=place == search.chosen)
        for place, facts in enumerate(search.candidates)
    ]


def _row(place: int, facts: Mapping[str, Any], *, is_chosen: bool) -> Row:
    is_file = bool(facts["precision"])
    about = "" if is_file else "about "
    latency = facts["latency_ms"]
    lost = f", less {facts['loss'] * 100:.1f} points by compiling" if facts["loss"] else ""
    fate = f"round {facts['round']}: {facts['dropped']}" if facts["round"] else facts["dropped"]
    if is_file:
        fate = facts["dropped"] or "keeps to the budget"
    return Row(
        place=place,
        network=facts["network"],
        part=f"at {facts['depth']} {facts['precision']}".strip(),
        size=size(facts["size_bytes"]) if is_file else f"≥ {size(facts['size_bytes'])}",
        accuracy=shown(facts["correct"], facts["count"]) + lost if facts["count"] else "",
        test=shown(facts["test_correct"], facts["test_count"]) if facts["test_count"] else "",
        latency="" if latency is None else f"{about}{latency:.2f} ms",
        multiply_adds=f"{facts['multiply_adds'] / 1e6:.1f} M",
        fate="chosen" if is_chosen else fate,
        is_file=is_file,
        is_chosen=is_chosen,
    )


def plot(search: BudgetSearch) -> SafeString:
    """Return accuracy against size, the area of a point its multiply-adds."""
    points = [
        Bubble(
            x=facts["size_bytes"],
            y=facts["accuracy"],
            area=facts["multiply_adds"],
            kind=2 if place == search.chosen else 1 if facts["precision"] else 0,
            name=f"{facts['network']} at {facts['depth']} {facts['precision']}".strip(),
        )
        for place, facts in enumerate(search.candidates)
        if facts["count"]
    ]
    return bubble_chart(
        points,
        title="Accuracy against size: higher and further left is better",
        kinds=("dropped before compiling (size: a byte a weight)", "a finalist's file", "chosen"),
        limit=search.budget.get("max_size_bytes"),
    )
