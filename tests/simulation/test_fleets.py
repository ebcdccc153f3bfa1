"""Whole fleets over real HTTP: what is counted, who is told what, and what rollouts do with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleet.scenario import ScenarioError, read_scenario
from tests.support.server import ROOT, LiveServer, running_server

SCENARIOS = ROOT / "scenarios"

# Each test has a model of its own: two versions, the first one released.
RELEASED = """
import random, django
django.setup()
from tests.support import factories
content = {"tflite:int8": random.Random(1).randbytes(50_000)}
for slug in ("counted", "crashing", "equal"):
    model = factories.make_model(slug)
    first = factories.make_version(model, content=content)
    factories.make_version(model, content=content)
    factories.release(first)
"""
# Small fleets decide in few stages; two points cannot be told apart by a few hundred answers.
QUICK = {
    "stages_bp": [2500, 5000],
    "min_hours": 6,
    "min_installations": 15,
    "needs_feedback": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    settings = {"THROTTLE_EVENTS": "1000000/minute", "ROLLOUT_LOOK_S": "1"}
    with running_server(tmp_path_factory.mktemp("server"), **settings) as running:
        environment = {**running.env, "DJANGO_SETTINGS_MODULE": "server.settings"}
        subprocess.run([sys.executable, "-c", RELEASED], cwd=ROOT, env=environment, check=True)
        yield running


def simulate(
    server: LiveServer, folder: Path, model: str, *options: str, scenario: Any = "check"
) -> dict[str, Any]:
    """Run the command; return its report."""
    if isinstance(scenario, dict):
        (folder / "scenario.json").write_text(json.dumps(scenario))
        scenario = folder / "scenario.json"
    done = server.manage(
        "simulate_fleet", "--url", server.url, "--model", model, "--scenario", str(scenario),
        "--json", str(folder / "report.json"), "--seed", "1", *options,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return json.loads((folder / "report.json").read_text())


@pytest.mark.timeout(600)
def test_every_event_counts_once_and_everybody_gets_the_arm_that_is_due(server, tmp_path):
    # So that no stage begins while everybody is asked.
    slow = {**read_shipped("check"), "policy": {"stages_bp": [2000]}}
    slow["days"], slow["day_s"] = 1, 1.0
    report = simulate(
        server, tmp_path, "counted", "--devices", "300", "--candidate", "2", "--check",
        scenario=slow,
    )  # fmt: skip
    assert all(report["checks"].values()), report["findings"]
    assert len(report["checks"]) == 4
    events = report["events"]
    assert events["lost_answers"] > 0
    assert events["duplicates"] > 0, "answers were lost, so events came twice"
    assert events["accepted"] == events["recorded"]
    # A fifth of 300 in treatment: 99.99 % of draws lie between.
    assert 33 <= report["exposed"] <= 90


@pytest.mark.timeout(600)
def test_a_candidate_that_crashes_on_one_class_of_devices_is_rolled_back(server, tmp_path):
    crash = read_shipped("crash")
    # It takes three starts to tell a crash, and a stage has to last longer than that.
    crash["fleet"] |= {"devices": 240, "clocks": [], "offline_per_day": 0, "sessions_per_day": 8}
    crash |= {"day_s": 15, "days": 12, "policy": {**QUICK, "min_hours": 24, "deadline_days": 12}}
    report = simulate(server, tmp_path, "crashing", "--candidate", "2", scenario=crash)
    assert report["rollout"]["state"] == "rolled_back", report["timeline"]
    assert "crash" in report["rollout"]["outcome"]
    # It is seen for another day how everybody goes back, and no longer.
    assert report["remaining"] < report["exposed"] < 240 * 0.75
    assert report["last_day"] < 12


@pytest.mark.timeout(600)
def test_an_equal_candidate_is_promoted(server, tmp_path):
    equal = read_shipped("equal")
    equal["fleet"] |= {"devices": 200, "offline_per_day": 0}
    equal |= {"day_s": 15, "days": 12, "policy": {**QUICK, "deadline_days": 12}}
    report = simulate(server, tmp_path, "equal", "--candidate", "2", scenario=equal)
    assert report["rollout"]["state"] == "promoted", report["timeline"]
    assert not report["rollout"]["false_alarm"]


def read_shipped(name: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads((SCENARIOS / f"{name}.toml").read_text())


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_scenarios_can_be_followed(path):
    assert read_scenario(path).name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\n[fleet]\ndevises = 3', "fleet has no member 'devises'"),
        ("days = 3", "lacks 'name'"),
        ('name = "x"\ndays = "three"', "days is 'three'; it takes a number"),
        ('name = "x"\n[fleet]\napp_versions = { "1" = 0.5 }', "add up to 0.5, not to 1"),
        ('name = "x"\n[candidate]\nsuccess = 93', "success is a share"),
        ('name = "x"\n[expect]\noutcome = "good"', "one of any, promoted"),
        ("name = ", "cannot be read"),
    ],
)
def test_a_scenario_that_cannot_be_followed_says_where(tmp_path, text, said):
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=said):
        read_scenario(path)
