"""TFLite."""

from __future__ import annotations
import tempfile
from pathlib import Path
from typing import Any


def convert(model: Any, precision: str) -> bytes:
    import keras
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        shape = (1, *model.input_shape[1:])
        archive.add_endpoint(
            "serve",
            lambda image: model(image, training=False),
            input_signature=[tf.TensorSpec(shape, tf.float32, name="image")],
        )
        archive.write_out(folder, verbose=False)
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
