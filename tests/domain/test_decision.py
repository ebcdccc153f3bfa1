from __future__ import annotations

import pytest

from server.domain.decision import ChannelFacts, ReleaseFacts, VariantFacts, decide, read_poll
from server.domain.errors import InvalidInput

FLOAT16 = VariantFacts("float16", "a" * 64)
INT8 = VariantFacts("int8", "b" * 64)
PALETTE = VariantFacts("palette8", "c" * 64, {"ios": "16.0"})
CORE_ML = VariantFacts("float16", "d" * 64, {"ios": "15.0"})
RELEASE = ReleaseFacts(
    "v3", 7, "gate passed", {"tflite": (FLOAT16, INT8), "coreml": (CORE_ML, PALETTE)}
)
SERVING = ChannelFacts(RELEASE)


def ask(**query: str):
    return read_poll({"device": "d1", "runtime": "tflite", **query})


def test_the_first_precision_the_device_accepts_and_can_run_is_chosen():
    assert decide(SERVING, ask()).variant == FLOAT16
    assert decide(SERVING, ask(accept="int8,float16")).variant == INT8
    poll = ask(runtime="coreml", accept="palette8,float16", platform="iOS", os_version="15.4")
    decision = decide(SERVING, poll)
    assert decision.variant == CORE_ML
    assert any("needs iOS 16.0, this is 15.4" in step.reason for step in decision.steps)


@pytest.mark.parametrize(
    ("version", "precision"),
    [("16", "palette8"), ("16.0.0", "palette8"), ("15.9", "float16"), ("sixteen", "palette8")],
)
def test_a_system_may_write_its_version_shorter_than_it_is_asked_for(version, precision):
    poll = ask(runtime="coreml", accept="palette8,float16", platform="ios", os_version=version)
    assert decide(SERVING, poll).variant.precision == precision


def test_a_device_that_nothing_fits_gets_nothing_and_keeps_what_it_has():
    decision = decide(SERVING, ask(accept="float64"))
    assert decision.variant is None
    assert not decision.is_embedded_wanted
    assert "no tflite variant" in decision.reason


def test_embedded_is_asked_for_only_after_everything_was_revoked():
    assert not decide(ChannelFacts(None), ask()).is_embedded_wanted
    assert decide(ChannelFacts(None, ("e" * 64,)), ask()).is_embedded_wanted
    assert not decide(None, ask(channel="beta")).is_embedded_wanted


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"runtime": "tflite"}, "missing_device"),
        ({"device": "a b", "runtime": "tflite"}, "invalid_device"),
        ({"device": "d" * 129, "runtime": "tflite"}, "invalid_device"),
        ({"device": "d"}, "invalid_runtime"),
        ({"device": "d", "runtime": "onnx"}, "invalid_runtime"),
    ],
)
def test_a_poll_that_lacks_its_unit_or_runtime_is_refused(query, code):
    with pytest.raises(InvalidInput) as raised:
        read_poll(query)
    assert raised.value.code == code
