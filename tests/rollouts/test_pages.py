"""The pages of rollouts: what they show, what they offer, and who may."""

from __future__ import annotations

import html
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


def confirmed(client: Any, address: str, body: dict[str, Any]) -> tuple[str, Any]:
    """Answer a question and the one that follows from it; return what was said in between."""
    first = client.post(address, body)
    assert first.status_code == 200
    said = html.unescape(first.content.decode())
    assert 'name="confirmed"' in said
    return said, client.post(address, body | {"confirmed": "1"}, follow=True)


POLICY = {
    "rollout": "staged", "stages_bp": "2, 12.5, 50", "min_hours": "12", "min_installations": "30",
    "max_data_age_hours": "24", "deadline_days": "10", "alpha": "0.05", "margin": "0.01",
    "tuned_for": "2000", "max_both_arms_share": "0.01", "needs_feedback": "on", "prefer": "stated",
}  # fmt: skip


def test_a_delivery_policy_is_explained_confirmed_and_kept(
    admin_client: Any, rollout: Rollout
) -> None:
    model = rollout.version.model
    staging.set_golden(model=model, channel="production", version=model.versions.get(number=1))
    address = page("model_delivery", model.pk)
    asked = html.unescape(admin_client.get(address).content.decode())
    assert "A new version goes to everyone on production at once." in asked
    assert "2 % of recyclables/production stay on v2, version 1." in asked
    assert "Continue</button>" in asked
    rules = "app_version version_at_least 3.0\nplatform is android, ios"
    body = POLICY | {"targeting": rules, "approvals": "production 1", "holdout": "5",
                     "prefer": "fastest"}  # fmt: skip
    said, after = confirmed(admin_client, address, body)
    assert "in stages (2, 12.5, 50 % per arm)" in said
    assert "where app_version version at least 3.0 and platform is android or ios" in said
    assert "starts once one more person has approved" in said
    assert "5 % of the installations are given v2, version 1, at their next check" in said
    assert b"The delivery policy of recyclables is changed." in after.content
    model.refresh_from_db()
    assert model.delivery_policy == {
        "rollout": "staged",
        "policy": {"stages_bp": [200, 1250, 5000], "min_hours": 12.0, "min_installations": 30,
                   "deadline_days": 10.0, "margin": 0.01},
        "targeting": [
            {"attribute": "app_version", "operator": "version_at_least", "values": ["3.0"]},
            {"attribute": "platform", "operator": "is", "values": ["android", "ios"]},
        ],
        "approvals": {"production": 1},
        "holdout_bp": 500,
        "prefer": "fastest",
    }  # fmt: skip
    # What is shown is what is kept, so that saving it unchanged changes nothing.
    form = admin_client.get(address).context["form"]
    assert (form.initial["targeting"], form.initial["stages_bp"]) == (rules, "2, 12.5, 50")
    # Whoever changes their mind gets the form again, filled in, and nothing is done.
    body |= {"rollout": "direct", "confirmed": "1", "again": "1"}
    again = admin_client.post(address, body).content.decode()
    assert 'name="confirmed"' not in again
    assert "12.5" in again
    model.refresh_from_db()
    assert model.delivery_policy["rollout"] == "staged"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stages_bp": "5, 2"}, "stages_bp are at most 20, growing"),
        ({"stages_bp": "one"}, "“one” is no percentage such as 5 or 2.5"),
        ({"stages_bp": "0.001"}, "“0.001” is no percentage"),
        ({"stages_bp": "NaN"}, "“NaN” is no percentage"),
        ({"targeting": "platform"}, "Line 1: write an attribute, an operator and values"),
        ({"targeting": "\nplatform is [1"}, "Line 2: write an attribute, an operator and values"),
        ({"targeting": "colour is red"}, "Rule 1: attribute 'colour' is not known"),
        ({"targeting": "app_version version_is x"}, "Rule 1: 'x' is no version"),
        ({"approvals": "production"}, "Line 1: write a channel and a number"),
        ({"approvals": "production 99"}, "takes 0 to 10 approvals for 'production'"),
        ({"holdout": "101"}, "less than or equal to 100"),
        ({"margin": "2"}, "margin lies between 0 and 1"),
        ({"alpha": "inf"}, "Enter a number"),
    ],
)
def test_a_delivery_policy_that_is_none_is_refused_by_a_sentence(
    admin_client: Any, rollout: Rollout, change: dict[str, str], sentence: str
) -> None:
    body = POLICY | {"targeting": "", "approvals": "", "holdout": "2"} | change
    address = page("model_delivery", rollout.version.model_id)
    answer = html.unescape(admin_client.post(address, body | {"confirmed": "1"}).content.decode())
    assert sentence in answer
    rollout.version.model.refresh_from_db()
    assert rollout.version.model.delivery_policy == {}


def test_a_golden_version_is_chosen_and_given_up(admin_client: Any, rollout: Rollout) -> None:
    model, channel = rollout.version.model, rollout.channel
    address = page("channel_golden", channel.pk)
    first = model.versions.get(number=1)
    said, _ = confirmed(admin_client, address, {"version": first.pk})
    assert "2 % of the installations on recyclables/production are given version 1" in said
    channel.refresh_from_db()
    assert channel.golden is not None
    assert (channel.golden.version, channel.golden.label) == (first, "v2")
    other = make_version(make_model("other"))
    wrong = admin_client.post(address, {"version": other.pk, "confirmed": "1"})
    assert b"Select a valid choice" in wrong.content
    said, _ = confirmed(admin_client, address, {"version": ""})
    assert "that were held out get what the others get" in said
    channel.refresh_from_db()
    assert channel.golden is None


def test_a_draft_is_changed_until_it_starts(
    admin_client: Any, admin_user: Any, rollout: Rollout
) -> None:
    staging.approve_rollout(rollout=rollout, actor=admin_user)
    address = page("rollout_targeting", rollout.pk)
    body = POLICY | {
        "targeting": "os_version version_at_least 16",
        "allow_list": "desk-1\n\ndesk-2",
    }
    said, _ = confirmed(admin_client, address, body)
    assert (
        "it is for installations where os_version version at least 16; others keep what they have"
        in said
    )
    assert "2 installations get the candidate by name." in said
    assert "1 approval of it have to be given again." in said
    rollout.refresh_from_db()
    assert rollout.targeting[0]["values"] == ["16"]
    assert rollout.rules.stages_bp == (200, 1250, 5000)
    assert rollout.allow_list == ["desk-1", "desk-2"]
    refused = admin_client.post(address, body | {"allow_list": "a desk", "confirmed": "1"})
    assert refused.status_code == 409
    staging.start_rollout(rollout=rollout)
    frozen = admin_client.post(address, body | {"stages_bp": "1", "confirmed": "1"})
    assert b"are frozen" in frozen.content
    rollout.refresh_from_db()
    assert rollout.rules.stages_bp == (200, 1250, 5000)


def test_stages_that_nobody_touched_still_follow_the_fleet(
    admin_client: Any, rollout: Rollout
) -> None:
    form = admin_client.get(page("rollout_targeting", rollout.pk)).context["form"]
    body = {name: value for name, value in form.initial.items() if value is not False}
    confirmed(admin_client, page("rollout_targeting", rollout.pk), body | {"min_hours": "3"})
    rollout.refresh_from_db()
    assert (rollout.rules.min_hours, rollout.has_own_stages) == (3.0, False)


def test_an_installation_is_given_a_version_by_name(admin_client: Any, rollout: Rollout) -> None:
    body = {"channel": rollout.channel_id, "device": "desk-7", "version": rollout.version_id,
            "reason": "to see it"}  # fmt: skip
    said, after = confirmed(admin_client, page("override_add"), body)
    assert "desk-7 is given version 2 of recyclables/production" in said
    assert "a label of its own" in said
    assert b"desk-7 gets version 2" in after.content
    assert rollout.channel.overrides.get().device == "desk-7"
    other = make_version(make_model("other"))
    wrong = admin_client.post(page("override_add"), body | {"version": other.pk})
    assert "is no channel of other" in wrong.content.decode()


def test_who_may_only_look_changes_no_policy(client: Any, django_user_model, rollout) -> None:
    viewer = django_user_model.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(
        Permission.objects.filter(codename__in=["view_rollout", "view_channel", "view_override"])
    )
    client.force_login(viewer)
    channel = rollout.channel
    for address in (
        page("model_delivery", channel.model_id), page("channel_golden", channel.pk),
        page("rollout_targeting", rollout.pk), page("override_add"),
    ):  # fmt: skip
        assert client.post(address, {"confirmed": "1"}).status_code in (302, 403, 404), address
    channel.model.refresh_from_db()
    assert (channel.model.delivery_policy, channel.overrides.count()) == ({}, 0)
