"""Classes of failures: what a guardrail counts is a class, and no code of one SDK."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LOAD_FAILURE: Final = "load_failure"
CRASH: Final = "crash"
INFERENCE_ERROR: Final = "inference_error"
LATENCY: Final = "latency"
OTHER: Final = "other"
CLASSES: Final = (LOAD_FAILURE, CRASH, INFERENCE_ERROR, LATENCY, OTHER)

# What the installation could not help, such as a full disk or a wrong clock, is no fault of the
# release and stays "other".
_BY_CODE: Final[Mapping[str, str]] = {
    "selftest_too_slow": LATENCY,
    "too_slow": LATENCY,
    "compile_failed": LOAD_FAILURE,
    "integrity": LOAD_FAILURE,
    "load": LOAD_FAILURE,
    "manifest_mismatch": LOAD_FAILURE,
    "wrong_variant": LOAD_FAILURE,
    "crash": CRASH,
    "crashed": CRASH,
    "unconfirmed": CRASH,
    "prediction": INFERENCE_ERROR,
    "inference": INFERENCE_ERROR,
    # The app itself says that the model fails it.
    "reported": INFERENCE_ERROR,
}


def classify(data: Mapping[str, object]) -> str:
    """Return the class of a failure from an event's ``data``.

    A ``failure`` that names a class is taken at its word; else the SDK's ``code`` decides.
    """
    stated = data.get("failure")
    if isinstance(stated, str) and stated in CLASSES:
        return stated
    code = data.get("code")
    if not isinstance(code, str):
        return OTHER
    if code in CLASSES:
        return code
    if code not in _BY_CODE and code.startswith("selftest"):
        return LOAD_FAILURE
    return _BY_CODE.get(code, OTHER)
