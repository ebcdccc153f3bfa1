"""The pages of rollouts: what they show, what they offer, and who may."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from server.rollouts import staging
from server.rollouts.models import Rollout, Webhook
from tests.support.factories import make_model, make_version, publish, release
from worker.pipelines import rollouts as worker

pytestmark = pytest.mark.django_db


def page(name: str, *args: object) -> str:
    return reverse(f"admin:rollouts_{name}", args=args)


@pytest.fixture
def rollout() -> Rollout:
    model = make_model()
    release(make_version(model))
    return staging.create_rollout(version=make_version(model))


def test_a_person_drafts_starts_watches_and_rolls_back(admin_client: Any, rollout: Rollout) -> None:
    version = make_version(rollout.version.model)
    body = {"version": version.pk, "channel": "production", "reason": "", "notes": ""}
    made = admin_client.post(page("rollout_add"), body, follow=True)
    assert b"0 installations were seen in the last 7 days" in made.content

    question = admin_client.get(page("rollout_start", rollout.pk))
    assert b"the first stage is offered it" in question.content
    admin_client.post(page("rollout_start", rollout.pk), {"reason": "let us see"})
    rollout.refresh_from_db()
    assert rollout.state == "running"
    shown = admin_client.get(page("rollout_change", rollout.pk)).content.decode()
    assert "The candidate is being signed" in shown
    publish(rollout.version.model)
    worker.look(now=timezone.now())
    shown = admin_client.get(page("rollout_change", rollout.pk)).content.decode()
    assert 'aria-current="step">1 %' in shown
    assert shown.count("no evidence of harm") == 5
    assert "Waiting for" in shown
    refused = admin_client.post(page("rollout_start", rollout.pk), {"reason": ""})
    assert b"Its state does not take that." in refused.content
    admin_client.post(page("rollout_rollback", rollout.pk), {"reason": "enough seen"})
    rollout.refresh_from_db()
    assert (rollout.state, rollout.outcome) == ("rolled_back", "enough seen")
    assert rollout.decisions.filter(actor__isnull=False).count() == 2


def test_who_may_only_look_changes_nothing(
    client: Any, django_user_model, rollout: Rollout
) -> None:
    viewer = django_user_model.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename="view_rollout"))
    client.force_login(viewer)
    shown = client.get(page("rollout_change", rollout.pk))
    assert shown.status_code == 200
    assert page("rollout_start", rollout.pk).encode() not in shown.content
    for verb in ("start", "queue", "kill", "rollback", "approve"):
        answer = client.post(page(f"rollout_{verb}", rollout.pk), {"reason": "no"})
        assert answer.status_code in (302, 403, 404), verb
    rollout.refresh_from_db()
    assert rollout.state == "draft"


def test_a_webhooks_secret_is_taken_and_never_shown(admin_client: Any) -> None:
    body = {"url": "https://hooks.example.org/x", "secret": "a-secret-of-16-or-more",
            "channel": "", "model": "", "is_enabled": "on"}  # fmt: skip
    assert admin_client.post(page("webhook_add"), body).status_code == 302
    made = Webhook.objects.get()
    change = page("webhook_change", made.pk)
    assert made.secret.encode() not in admin_client.get(change).content
    assert admin_client.post(change, body | {"secret": "", "channel": "beta"}).status_code == 302
    made.refresh_from_db()
    assert (made.secret, made.channel) == (body["secret"], "beta")


def test_lists_ask_the_database_no_more_for_more_rows(admin_client: Any, rollout: Rollout) -> None:
    names = ("rollout", "rolloutdecision", "override", "webhook", "webhookcall")

    def count() -> dict[str, int]:
        counts = {}
        for name in names:
            with CaptureQueriesContext(connection) as queries:
                assert admin_client.get(page(f"{name}_changelist")).status_code == 200
            counts[name] = len(queries)
        return counts

    model = rollout.version.model
    staging.start_rollout(rollout=rollout)
    few = count()
    for number in range(4):
        staging.create_rollout(version=make_version(model))
        staging.set_override(model=model, channel="production", device=f"desk-{number}",
                             version=rollout.version)  # fmt: skip
    staging.pause_rollout(rollout=rollout)
    many = count()
    assert {name: many[name] - few[name] for name in names if name != "override"} == {
        name: 0 for name in names if name != "override"
    }
