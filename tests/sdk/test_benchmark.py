"""A benchmark is bounded, waits for confirmation, and is told with the file it timed."""

from __future__ import annotations

import nightferry
import pytest
from nightferry.testing import FakeServer

from tests.support.data import data_folder

from .conftest import ClientFactory
from .support import NAME


def test_a_confirmed_model_is_timed_and_told(
    server: FakeServer, make_client: ClientFactory
) -> None:
    weights = data_folder("weights")
    labels = (weights / "imagenet_labels.txt").read_text().splitlines()
    content = (weights / "tf2_mobilenet_v2_1.0_224_ptq.tflite").read_bytes()
    server.publish(NAME, content, labels)
    client = make_client(device_class="phone")
    client.sync(NAME)
    with pytest.raises(nightferry.ConditionsNotMetError, match="on trial"):
        client.benchmark(NAME)
    client.notify_ready(NAME)
    for wrong in (0, -1, 61, float("nan")):
        with pytest.raises(nightferry.ConfigurationError):
            client.benchmark(NAME, max_s=wrong)
    report = client.benchmark(NAME, max_s=0.5)
    assert 1 <= report.runs <= 200
    assert 0 < report.fastest_ms <= report.median_ms <= report.slowest_ms
    client.flush_events()
    (event,) = [one for one in server.events if one["type"] == "benchmark"]
    assert (event["sha256"], event["device_class"]) == (report.model.sha256, "phone")
    assert sum(event["data"]["histogram"].values()) == event["data"]["count"] == report.runs
    assert not [one for one in server.events if one["type"] in {"latency", "first_inference"}]


def test_a_model_that_is_not_there_is_not_timed(make_client: ClientFactory) -> None:
    with pytest.raises(nightferry.NoModelError):
        make_client().benchmark(NAME)
