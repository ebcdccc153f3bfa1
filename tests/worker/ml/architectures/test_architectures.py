"""Every network has the shape, the size and the cost that are published of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from server.domain.architectures import ARCHITECTURES as NAMES
from tests.worker.ml.architectures.published import PUBLISHED
from worker.ml.architectures import ARCHITECTURES, Architecture
from worker.ml.architectures.counting import count_multiply_adds, count_parameters
from worker.ml.determinism import pin_tensorflow

# Other widths and sizes of a family pass the same code, and their features take no other shape.
_ALSO = ("mobilenet_v2_0.35_224", "mobilenet_v2_1.4_224", "mobilenet_0.25_128")
_FAMILIES = ("mobilenet_v2_", "mobilenet_0", "mobilenet_1")
BUILT = (*_ALSO, *(name for name in NAMES if not name.startswith(_FAMILIES)))
SMALL_PX = 96


@pytest.fixture(autouse=True)
def forget_networks() -> Iterator[None]:
    yield
    import keras

    keras.backend.clear_session()


def test_policies_may_name_what_can_be_trained() -> None:
    assert set(NAMES) == set(ARCHITECTURES)
    assert len(set(NAMES)) == len(NAMES)


def test_every_network_but_our_own_has_a_published_count() -> None:
    assert set(ARCHITECTURES) - set(PUBLISHED) == {"small_cnn"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    architecture, published = ARCHITECTURES[name], PUBLISHED[name]
    if published.counts == "all":
        assert architecture.parameters == published.parameters
    if published.counts == "rounded":
        assert architecture.parameters == pytest.approx(
            published.parameters, rel=published.parameters_within + 0.01
        )
    if published.multiply_adds is not None:
        assert architecture.multiply_adds == pytest.approx(
            published.multiply_adds, rel=published.multiply_adds_within
        )


@pytest.mark.ml
@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_the_size_and_the_cost_it_says(name: str) -> None:
    import keras

    pin_tensorflow(0)
    architecture = ARCHITECTURES[name]
    # Shapes are all that counts: no weight is drawn.
    with keras.StatelessScope():
        whole = architecture.build_published()
    assert count_parameters(whole) == architecture.parameters
    assert count_multiply_adds(whole) == architecture.multiply_adds
    small = name.startswith(("mnist", "cifar", "small"))
    assert whole.output_shape == (None, 10 if small else 1000)
    if name in PUBLISHED and PUBLISHED[name].counts == "trained":
        trained = sum(math.prod(weight.shape) for weight in whole.trainable_weights)
        assert trained == PUBLISHED[name].parameters


@pytest.mark.ml
@pytest.mark.parametrize("name", BUILT)
def test_a_network_takes_photos_to_features_that_differ(name: str) -> None:
    pin_tensorflow(0)
    architecture = _small(ARCHITECTURES[name])
    network = architecture.build(architecture.input_size)
    features = np.asarray(network(_pictures(architecture.input_size), training=False))
    assert features.shape == (2, architecture.feature_size)
    assert network.layers[-1].name == "features"
    # The guard without which every comparison of outputs agrees.
    assert np.abs(features[0] - features[1]).mean() > 1e-6 * np.abs(features).mean()
    for depth in architecture.depths:
        assert len(network.get_layer(depth).output.shape) == 4


def _small(architecture: Architecture) -> Architecture:
    if not architecture.resizable:
        return architecture
    return architecture.at(max(SMALL_PX, architecture.smallest_px))


def _pictures(side: int) -> Any:
    """Return two smooth pictures that share neither colours nor directions."""
    ramp = np.linspace(0, 255, side, dtype=np.float32)
    first = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, ::-1], 60.0), axis=-1)
    second = np.stack(np.broadcast_arrays(200.0, ramp[::-1, None], ramp[None, :]), axis=-1)
    return np.stack([first, second]).astype(np.float32)


def test_sizes_that_a_network_cannot_take_are_refused() -> None:
    with pytest.raises(ValueError, match="takes photos of 28 px"):
        ARCHITECTURES["mnist_cnn"].at(32)
    with pytest.raises(ValueError, match="from 75 px on"):
        ARCHITECTURES["inception_v3"].at(64)
    assert ARCHITECTURES["resnet50"].at(96).input_size == 96
