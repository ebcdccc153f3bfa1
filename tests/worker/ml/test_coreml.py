"""Core ML files run on Linux answer as Keras does, and broken ones are found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import blobs
from server.registry import actions as registry
from server.registry.models import ModelVersion, Variant
from tests.support.factories import make_model
from tests.worker.ml import coreml_faults as faults
from tests.worker.ml.conftest import BACKBONE, LABELS, Photos
from worker.ml import compilers, evaluation, training
from worker.ml.architectures import find_architecture
from worker.ml.compilers import coreml
from worker.ml.compilers.coreml_check import check_package
from worker.ml.coreml import Comparison, CoreMLModel, OperatorUnknown, compare
from worker.ml.coreml.arithmetic import round_to_float16
from worker.ml.coreml.networks import LAYERS
from worker.ml.coreml.operators import OPERATORS
from worker.ml.embeddings import Embedder
from worker.ml.preprocessing import default_preprocessing
from worker.ml.weights import find_weights
from worker.pipelines import variants

if TYPE_CHECKING:
    import keras

pytestmark = pytest.mark.ml
SIDE = 48


@dataclass(frozen=True)
class Trained:
    """A MobileNetV2 with a head for real photos, and the packages made of it."""

    network: keras.Model
    photos: Photos
    answers: npt.NDArray[np.float32]
    float16: bytes
    palette8: bytes

    def compare(self, data: bytes) -> Comparison:
        return compare(CoreMLModel(data), self.photos.images, self.answers)

    def failing(self, data: bytes) -> set[str]:
        checks = check_package(data, labels=LABELS, keras_model=self.network)
        return {check["name"] for check in checks if not check["passed"]}


@pytest.fixture(scope="module")
def trained(
    load_photos: Callable[[int, int], Photos],
    weights_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    photos = load_photos(6, 224)
    architecture = find_architecture(BACKBONE)
    weights = find_weights(BACKBONE, weights_folder, allow_download=False)
    embedder = Embedder(architecture, weights, tmp_path_factory.mktemp("embedder"))
    head = training.train_head(
        embedder.embed(photos.images),
        photos.indexes,
        label_count=len(LABELS),
        seed=1,
        progress=lambda *_: None,
    )
    network = training.assemble(architecture, weights, head, LABELS)
    some = Photos(photos.paths[:12], photos.images[:12], photos.indexes[:12])
    answers = evaluation.predict_keras(network, some.images)
    # A guard: where all answers are alike, everything agrees with everything.
    assert answers.std(axis=0).max() > 0.1
    files = [
        compilers.compile_variant(
            network,
            "coreml",
            precision,
            labels=LABELS,
            preprocessing=default_preprocessing(224),
            name="recyclables",
            version="3",
        )
        for precision in ("float16", "palette8")
    ]
    assert [file.failures for file in files] == [[], []]
    return Trained(network, some, answers, files[0].data, files[1].data)


def test_packages_agree_with_keras_on_photos(trained: Trained) -> None:
    compared = trained.compare(trained.float16)
    assert compared.varies
    assert compared.error < 0.03
    assert compared.agreeing == compared.count == 12
    coarse = trained.compare(trained.palette8)
    assert compared.error < coarse.error < 0.2


ALL_RIGHT: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("fault", "found_by"),
    [
        (faults.swap_channels, {"weights", "execution"}),
        (faults.declare_bgr, {"input", "execution"}),
        (faults.halve_the_scale, {"scaling", "execution"}),
        (faults.scale_twice, {"scaling", "execution"}),
        (faults.exchange_labels, {"labels"}),
        (faults.exchange_outputs, {"weights", "execution"}),
        (faults.forget_a_layer, {"weights", "execution"}),
        (faults.cut_the_weights, {"structure"}),
        (faults.pad_elsewhere, {"execution"}),
        (faults.lose_the_ceiling, {"execution"}),
        # Of no consequence for any answer; the file's hash is what finds it.
        (faults.flip_a_bit, ALL_RIGHT),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_package_is_found_out(
    trained: Trained, fault: Callable[[faults.Opened], None], found_by: set[str]
) -> None:
    broken = faults.break_package(trained.float16, fault)
    assert broken != trained.float16
    assert trained.failing(broken) == found_by
    if "structure" not in found_by:
        # The same on photos, by answers alone.
        assert trained.compare(broken).passed == ("execution" not in found_by)


def test_a_wrong_entry_of_a_palette_is_found_out(trained: Trained) -> None:
    broken = faults.break_package(trained.palette8, faults.change_a_palette_entry)
    assert trained.failing(broken) == {"weights", "execution"}


@pytest.mark.django_db
def test_a_night_runs_core_ml_files_over_the_test_photos(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "COREML_PHOTOS", 8)
    version = registry.draft_version(
        model=make_model(labels=LABELS),
        source=ModelVersion.Source.TRAINED,
        labels=LABELS,
        lineage={},
        preprocessing=default_preprocessing(224).to_manifest(),
    )
    reference = variants.Reference(
        trained.network,
        images=trained.photos.images,
        targets=trained.photos.indexes,
        probabilities=trained.answers,
        calibration=(),
        preprocessing=default_preprocessing(224),
    )

    def record(data: bytes, precision: str) -> Variant:
        made = compilers.CompiledFile(
            "coreml", precision, "x.mlpackage.zip", coreml.MEDIA_TYPE, data, requires={}
        )
        return variants.record_variant(
            version, made, reference, 0.02, blobs.store(), MagicMock(), min_agreement=0.9
        )

    right = record(trained.float16, "float16")
    assert right.is_shipped
    assert right.metrics["count"] == right.metrics["agreement"]["count"] == 8
    assert right.metrics["conversion"]["error_of_spread"] < 0.05
    assert "MIL definitions" in right.metrics["measured"]
    assert "latency_ms" not in right.metrics
    assert right.selftest["format"] == 1
    # The same labels on every photo, and found out all the same.
    wrong = record(faults.break_package(trained.float16, faults.swap_channels), "float32")
    assert not wrong.is_shipped
    assert wrong.metrics["agreement"]["agreeing"] == 8
    assert "photos: disagrees with Keras" in wrong.refusal
    unknown = record(faults.break_package(trained.float16, faults.sort_a_layer), "palette8")
    assert unknown.is_shipped
    assert unknown.metrics["measured"].startswith("structure checked only")
    assert unknown.selftest == {}


# --- operators --------------------------------------------------------------------------------


def _network_of_everything() -> keras.Model:
    """Return one small network with every operator that the catalogue's networks become."""
    import keras
    from keras import layers

    def mixed(x: Any, filters: int) -> Any:
        """Parted in groups and shuffled (ShuffleNet), then by channel (MobileNet)."""
        y = layers.Conv2D(filters, 1, groups=3, use_bias=False)(x)
        y = layers.ReLU(max_value=6.0)(layers.BatchNormalization()(y))
        side = y.shape[1]
        y = layers.Reshape((side, side, 3, filters // 3))(y)
        y = layers.Reshape((side, side, filters))(layers.Permute((1, 2, 4, 3))(y))
        y = layers.ZeroPadding2D(((0, 1), (0, 1)))(y)
        y = layers.DepthwiseConv2D(3, strides=2, use_bias=False)(y)
        return layers.BatchNormalization()(y)

    def excited(x: Any, gate: str) -> Any:
        """Squeeze and excitation."""
        channels = x.shape[-1]
        y = layers.GlobalAveragePooling2D(keepdims=True)(x)
        y = layers.Conv2D(channels // 4, 1, activation="relu")(y)
        return layers.Multiply()([x, layers.Conv2D(channels, 1, activation=gate)(y)])

    photo = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(photo)
    x = layers.Conv2D(24, 3, strides=2, padding="same")(x)
    x = layers.LeakyReLU(negative_slope=0.1)(layers.BatchNormalization()(x))
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    x = layers.Concatenate()([layers.AveragePooling2D(3, 2, padding="same")(x), mixed(x, 24)])
    # After a concatenation normalisation has no convolution to go into (DenseNet).
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = excited(excited(x, "sigmoid"), "hard_sigmoid")
    y = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    # A path moved by one pixel (NASNet).
    y = layers.AveragePooling2D(1, 1)(layers.Cropping2D(((1, 0), (1, 0)))(y))
    x = layers.Add()([x, y])
    x = layers.Concatenate()([
        layers.Conv2D(16, (1, 3), padding="same", activation="swish")(x),
        layers.Conv2D(16, 3, padding="same", dilation_rate=2, activation="elu")(x),
        layers.AveragePooling2D(3, 1, padding="same")(x),
    ])  # fmt: skip
    x = layers.Activation("hard_swish")(layers.Conv2D(32, 1)(x))
    x = layers.Dropout(0.3)(x)
    x = layers.Concatenate()([
        layers.GlobalMaxPooling2D()(x),
        layers.GlobalAveragePooling2D()(x),
        layers.Dense(24, activation="tanh")(layers.Flatten()(x)),
    ])  # fmt: skip
    return keras.Model(photo, layers.Dense(len(LABELS), activation="softmax")(x))


def _settle(network: keras.Model, photos: npt.NDArray[np.float32]) -> None:
    """Give normalisations the photos' own means, and the last layer answers that differ."""
    import keras

    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(photos, training=True)
    last = network.layers[-1]
    for _ in range(12):
        if np.asarray(network(photos, training=False)).std(axis=0).max() > 0.05:
            return
        last.set_weights([2 * array for array in last.get_weights()])


@pytest.fixture(scope="module")
def everything(load_photos: Callable[[int, int], Photos]) -> tuple[keras.Model, Photos]:
    import keras

    keras.utils.set_random_seed(4)
    photos = load_photos(2, SIDE)
    network = _network_of_everything()
    _settle(network, np.stack(photos.images).astype(np.float32))
    return network, photos


# What keras.applications and the networks written here become, found by converting each.
CATALOGUE_OPERATORS = {
    "add", "avg_pool", "batch_norm", "concat", "conv", "leaky_relu", "matmul", "max_pool", "mul",
    "pad", "reduce_mean", "relu", "relu6", "reshape", "sigmoid", "silu", "slice_by_index",
    "softmax", "transpose",
}  # fmt: skip
CATALOGUE_LAYERS = {
    "activation", "add", "batchedMatmul", "batchnorm", "concat", "convolution", "multiply",
    "padding", "pooling", "reduceMean", "reshapeStatic", "sliceStatic", "softmaxND", "transpose",
    "unary",
}  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_operator_of_the_catalogue_agrees_with_keras(
    everything: tuple[keras.Model, Photos], precision: str
) -> None:
    network, photos = everything
    data = compilers.compile_variant(
        network,
        "coreml",
        precision,
        labels=LABELS,
        preprocessing=default_preprocessing(SIDE),
        name="everything",
        version="1",
    ).data
    model = CoreMLModel(data)
    used = {one.op_type for one in model.decoded.functions["main"].operations}
    assert used >= CATALOGUE_OPERATORS
    assert OPERATORS.keys() >= CATALOGUE_OPERATORS
    compared = compare(model, photos.images, evaluation.predict_keras(network, photos.images))
    assert compared.varies
    assert compared.error < {"float32": 1e-4, "float16": 0.05}[precision]
    assert compared.agreeing == compared.count


def test_a_network_for_old_systems_agrees_with_keras(
    everything: tuple[keras.Model, Photos],
) -> None:
    network, photos = everything
    with coreml.quiet() as ct:
        made = coreml.convert(
            network, LABELS, convert_to="neuralnetwork", minimum_deployment_target=ct.target.iOS13
        ).get_spec()
    model = CoreMLModel(made.SerializeToString())
    layers = made.neuralNetworkClassifier.layers
    assert {layer.WhichOneof("layer") for layer in layers} >= CATALOGUE_LAYERS
    assert LAYERS.keys() >= CATALOGUE_LAYERS
    expected = evaluation.predict_keras(network, photos.images)
    compared = compare(model, photos.images, expected)
    assert compared.varies
    assert compared.error < 1e-4
    first = next(layer for layer in layers if layer.WhichOneof("layer") == "convolution")
    numbers = first.convolution.weights.floatValue
    numbers[:] = np.reshape(numbers, (-1, 3, 9))[:, ::-1].ravel().tolist()
    swapped = CoreMLModel(made.SerializeToString())
    assert not compare(swapped, photos.images, expected).passed


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    with coreml.quiet() as ct:
        from coremltools.converters.mil import Builder as mb  # noqa: N813

        @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))])  # type: ignore[untyped-decorator]
        def program(x: Any) -> Any:
            return mb.cumsum(x=mb.relu(x=x), axis=1)

        path = tmp_path / "unknown.mlpackage"
        ct.convert(program, convert_to="mlprogram", skip_model_load=True).save(str(path))
    model = CoreMLModel(path)
    assert model.unknown_operators == ("cumsum",)
    with pytest.raises(OperatorUnknown) as caught:
        model.run({model.inputs[0].name: np.ones((1, 4))})
    assert caught.value.operators == ("cumsum",)
    assert caught.value.code == "operator_unknown"


def test_answers_that_never_differ_are_no_evidence() -> None:
    flat = np.full((5, 3), 1 / 3, np.float32)
    from worker.ml.coreml.comparison import compare_answers

    compared = compare_answers(flat, flat, flat, "float16")
    assert not compared.varies
    assert "nothing can be compared" in compared.sentence
    answers = np.eye(3, dtype=np.float32)
    broken = np.full((3, 3), np.nan, np.float32)
    assert not compare_answers(broken, broken, answers, "float16").passed


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_rounding_to_float16_is_numpy_s(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(round_to_float16(values), expected)
