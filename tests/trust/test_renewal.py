"""What the clock keeps alive, and when it raises an alarm."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from django.test import Client
from django.utils import timezone
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from server.domain.errors import Conflict
from server.trust import actions, queries, roles
from server.trust.metrics import MetadataLives
from server.trust.models import MetadataFile
from tests.support.server import ROOT
from tests.trust.device import Device, look
from tests.trust.factories import make_target, publish

if TYPE_CHECKING:
    from pytest_django.fixtures import DjangoAssertNumQueries, SettingsWrapper

pytestmark = pytest.mark.django_db
HOUR = dt.timedelta(hours=1)
ROLE = roles.role_of("recyclables")


def test_a_server_left_alone_for_two_years_is_valid_at_every_hour(tmp_path: Path) -> None:
    now = timezone.now()
    target = make_target()
    publish(target, now=now)
    often, seldom = (Device(tmp_path / name) for name in ("often", "seldom"))
    signed = set()

    for day in range(0, 2 * 365, 6):
        at = now + dt.timedelta(days=day)
        signed |= {*actions.renew(now=at).signed}
        look([often], [target], at + HOUR)
        assert queries.alarms(at) == []

    look([seldom, Device(tmp_path / "fresh", queries.first_root())], [target], at)
    assert signed == {*roles.TOP_LEVEL, ROLE}


def test_the_timestamp_is_signed_every_hour_and_nothing_else_early() -> None:
    now = timezone.now()
    publish(make_target(), now=now)

    assert actions.renew(now=now + HOUR / 2).signed == ()
    assert actions.renew(now=now + HOUR).signed == ("timestamp",)
    assert actions.renew(now=now + HOUR).signed == ()
    assert actions.renew(now=now + dt.timedelta(days=4)).signed == ("snapshot", "timestamp")


def test_what_a_clock_far_ahead_signed_is_signed_again(tmp_path: Path) -> None:
    now = timezone.now()
    publish(make_target(), now=now + dt.timedelta(days=3650))

    assert {*actions.renew(now=now).signed} == {*roles.TOP_LEVEL, ROLE}

    look([Device(tmp_path / "device", queries.first_root())], [make_target()], now)
    assert all(life.fraction_left <= 1 for life in queries.role_lives(now))


def test_without_a_repository_nothing_is_renewed() -> None:
    assert actions.renew().signed == ()
    assert queries.role_lives() == []


def test_a_missing_key_holds_up_its_own_role_only(
    tmp_path: Path, settings: SettingsWrapper
) -> None:
    now = timezone.now()
    target = make_target()
    publish(target, now=now)
    device = Device(tmp_path / "device")
    for path in [*settings.TRUST_KEYS.glob("targets-*"), *settings.TRUST_KEYS.glob("root-*")]:
        path.unlink()

    renewed = actions.renew(now=now + dt.timedelta(days=100))
    assert (renewed.signed, renewed.overdue) == ((ROLE, "snapshot", "timestamp"), ())
    later = now + dt.timedelta(days=125)
    renewed = actions.renew(now=later)

    assert renewed.signed == (ROLE, "snapshot", "timestamp")
    assert renewed.overdue == ("targets",)
    look([device], [target], later)
    for path in settings.TRUST_KEYS.glob("snapshot-*"):
        path.unlink()
    later += dt.timedelta(days=5)
    renewed = actions.renew(now=later)
    assert (renewed.signed, renewed.overdue) == (("timestamp",), ("snapshot", "targets"))
    look([device], [target], later)
    for path in settings.TRUST_KEYS.glob("timestamp-*"):
        path.unlink()
    with pytest.raises(Conflict, match="trust rotate timestamp"):
        actions.renew(now=later + HOUR)


def test_an_alarm_sounds_under_a_third_of_a_life() -> None:
    now = timezone.now()
    publish(make_target(), now=now)
    assert not any(life.is_alarming for life in queries.role_lives(now))

    later = now + dt.timedelta(hours=17)
    lives = {life.role: life for life in queries.role_lives(later)}

    assert [role for role, life in lives.items() if life.is_alarming] == ["timestamp"]
    assert lives["timestamp"].fraction_left == pytest.approx(7 / 24, abs=0.001)
    assert "timestamp expire at" in queries.alarms(later)[0]
    assert "expired" in queries.alarms(now + dt.timedelta(days=2))[0]


def test_the_log_says_once_a_day_what_is_about_to_expire(settings: SettingsWrapper) -> None:
    now = timezone.now()
    publish(make_target(), now=now)
    for path in settings.TRUST_KEYS.glob("targets-*"):
        path.unlink()

    with capture_logs() as logs:
        for hour in range(100 * 24, 123 * 24, 6):
            actions.renew(now=now + HOUR * hour)

    said = [(entry["log_level"], entry["role"]) for entry in logs if "role" in entry]
    assert said == [("error", "targets")] * 3
    response = Client().get("/readyz")
    assert response.status_code == 200
    assert response.json()["warnings"] == []


def test_readiness_warns_of_what_expires_and_does_not_fail() -> None:
    publish(make_target(), now=timezone.now() - dt.timedelta(hours=17))

    response = Client().get("/readyz")

    assert response.status_code == 200
    (warning,) = response.json()["warnings"]
    assert "Metadata of timestamp expire at" in warning


def test_prometheus_sounds_its_alarms_at_the_same_moments() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus-alerts.yml").read_text())["groups"][0][
        "rules"
    ]
    gauge = "nightferry_metadata_expires_seconds"
    text = " ".join(rule["expr"] for rule in rules)

    for role in (*roles.TOP_LEVEL, ROLE):
        matcher = 'role=~"model-.+"' if role == ROLE else f'role="{role}"'
        seconds = int(roles.life_of(role).total_seconds() / 3)
        assert f"{gauge}{{{matcher}}} < {seconds}" in text
    assert f"absent({gauge})" in text


def test_files_that_expired_long_ago_are_forgotten_but_no_root() -> None:
    now = timezone.now()
    publish(make_target(), now=now)
    for day in range(0, 420, 7):
        actions.renew(now=now + dt.timedelta(days=day))

    stored = MetadataFile.objects.values_list("role", flat=True)

    assert queries.first_root() == queries.metadata_file("1.root.json")
    assert list(stored).count("timestamp") < 10


def test_scrapes_read_the_database_once_a_minute(
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    publish(make_target())
    lives = MetadataLives()

    with django_assert_num_queries(1):
        first = list(lives.collect())
        list(lives.collect())

    samples = {sample.labels["role"]: sample.value for sample in first[0].samples}
    assert samples["timestamp"] == pytest.approx(24 * 3600, abs=60)
    assert {*samples} == {*roles.TOP_LEVEL, ROLE}
    assert REGISTRY._names_to_collectors["nightferry_metadata_expires_seconds"]
