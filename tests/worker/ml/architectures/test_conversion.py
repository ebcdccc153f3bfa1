"""What Keras hides from the converters reaches them."""

from __future__ import annotations

import numpy as np
import pytest

from worker.ml import compilers, evaluation
from worker.ml.coreml import CoreMLModel
from worker.ml.determinism import pin_tensorflow
from worker.ml.preprocessing import default_preprocessing

SIDE = 16


@pytest.mark.ml
def test_convolutions_in_groups_become_core_ml() -> None:
    pin_tensorflow(0)
    import keras
    from keras import layers

    photo = keras.Input((SIDE, SIDE, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(photo)
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(x)
    x = layers.Conv2D(24, 1, groups=3, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(photo, layers.Dense(2, activation="softmax")(x))
    images = list(np.random.default_rng(1).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8))
    images += [image // 4 for image in images]
    exact = evaluation.predict_keras(model, images)
    assert exact.std(axis=0).max() > 1e-3
    for runtime, precision in (("coreml", "float32"), ("tflite", "float32")):
        made = compilers.compile_variant(
            model,
            runtime,
            precision,
            labels=["a", "b"],
            preprocessing=default_preprocessing(SIDE),
            name="grouped",
            version="1",
        )
        assert made.failures == []
        answers = (
            evaluation.predict_coreml(CoreMLModel(made.data), images)
            if runtime == "coreml"
            else evaluation.predict_tflite(made.data, images)[0]
        )
        assert answers == pytest.approx(exact, abs=1e-4)
    # Outside of a conversion such convolutions run as before.
    assert evaluation.predict_keras(model, images) == pytest.approx(exact)
