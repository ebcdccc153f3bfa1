from __future__ import annotations

import pytest

from server.domain.maturity import describe, label_maturity, poorest


@pytest.mark.parametrize(
    ("photos", "said"),
    [(0, "untrained"), (4, "untrained"), (5, "prototype"), (29, "prototype"), (30, "thin"),
     (199, "thin"), (200, "enough")],
)  # fmt: skip
def test_how_far_a_label_is_follows_its_photos(photos, said):
    assert label_maturity(photos, minimum=5) == said


def test_a_model_is_as_mature_as_its_poorest_label():
    assert poorest({"glass": 500, "metal": 12}, minimum=5) == "prototype"
    assert poorest({}, minimum=5) is None
    sentence = describe({"glass": 500, "metal": 12, "paper": 40, "wood": 2}, minimum=5)
    assert "metal 12" in sentence
    assert "paper 40" in sentence
    assert "wood 2" in sentence
    assert "glass" not in sentence
    assert describe({"glass": 500}, minimum=5) == ""
