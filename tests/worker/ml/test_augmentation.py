"""Views differ from their photo as far as their use allows, and always in the same way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from server.domain.policy import AUGMENTATIONS
from tests.worker.ml.conftest import Photos
from worker.ml.augmentation import NONE, PRESETS, augment, draw_sheet, view_of
from worker.ml.errors import MLError


def test_the_policy_names_the_presets_there_are() -> None:
    assert tuple(PRESETS) == AUGMENTATIONS


@pytest.mark.parametrize("name", [name for name in PRESETS if name != NONE.name])
def test_views_are_new_the_same_each_time_and_still_that_photo(
    name: str, load_photos: Callable[[int, int], Photos]
) -> None:
    images = load_photos(2, 96).images
    preset = PRESETS[name]
    for image in images:
        assert view_of(image, preset, 0) is image
        views = [view_of(image, preset, number) for number in (1, 2, 3)]
        assert all(view.shape == image.shape and view.dtype == np.uint8 for view in views)
        assert len({view.tobytes() for view in [image, *views]}) == 4
        assert np.array_equal(views[0], view_of(image.copy(), preset, 1))
    assert draw_sheet(images, preset).startswith(b"\xff\xd8\xff")


def test_a_generator_of_the_same_seed_draws_the_same_view(
    load_photos: Callable[[int, int], Photos],
) -> None:
    image = load_photos(1, 64).images[0]
    first, second, other = (
        augment(image, PRESETS["selfie"], np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert augment(image, NONE, np.random.default_rng(5)) is image


def test_only_front_cameras_mirror_and_fixed_ones_do_not_turn() -> None:
    """A mark in the corner of an even picture tells where each corner went."""
    image = np.full((96, 96, 3), 90, np.uint8)
    image[4:28, 4:28] = 250

    def sides(name: str) -> set[tuple[bool, bool]]:
        found = set()
        for number in range(1, 25):
            view = view_of(image, PRESETS[name], number).astype(float).mean(axis=2)
            view -= np.median(view)
            rows, columns = np.indices(view.shape)
            weights = np.maximum(view, 0)
            found.add((
                bool((rows * weights).sum() / weights.sum() > 48),
                bool((columns * weights).sum() / weights.sum() > 48),
            ))  # fmt: skip
        return found

    assert sides("hand_held") == sides("fixed_camera") == sides("scanned") == {(False, False)}
    assert sides("selfie") == {(False, False), (False, True)}


def test_an_unknown_preset_is_named() -> None:
    from worker.ml.augmentation import find_augmentation

    with pytest.raises(MLError, match="upside_down"):
        find_augmentation("upside_down")
