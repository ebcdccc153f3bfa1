"""Reads of models and versions."""

from __future__ import annotations

from django.db.models import Count, Prefetch, Q, QuerySet

from server.domain.errors import NotFound
from server.domain.policy import TrainingPolicy
from server.registry.models import Label, Model, ModelVersion


def get_model(slug: str) -> Model:
    """Return the model of that slug.

    Raises:
        NotFound: ``unknown_model``.

    """
    try:
        return Model.objects.get(slug=slug)
    except Model.DoesNotExist as error:
        message = f"There is no model called {slug!r}."
        raise NotFound(message, code="unknown_model") from error


def models_with_photos() -> QuerySet[Model]:
    """Return the models with their labels, each with its ``accepted`` photos counted."""
    # Photos stand above this app, which knows them by the name of their rows only.
    counted = Label.objects.annotate(
        accepted=Count("photos", filter=Q(photos__state="accepted"))
    ).order_by("position")
    return Model.objects.prefetch_related(Prefetch("labels", queryset=counted))


def get_version(model: Model, number: int) -> ModelVersion:
    """Return one version of the model.

    Raises:
        NotFound: ``unknown_version``.

    """
    try:
        return model.versions.get(number=number)
    except ModelVersion.DoesNotExist as error:
        message = f"{model.slug} has no version {number}."
        raise NotFound(message, code="unknown_version") from error


def label_names(model: Model) -> list[str]:
    """Return the model's labels in their order."""
    return list(model.labels.order_by("position").values_list("name", flat=True))


def training_policy(model: Model) -> TrainingPolicy:
    """Return the model's training policy with its defaults filled in."""
    return TrainingPolicy.read(model.training_policy)
