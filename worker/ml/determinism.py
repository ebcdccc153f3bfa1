"""Same inputs, same seed, same bytes: what has to be pinned, and the record of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import random
import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from worker.ml.errors import MLError

THREADS: Final = 2
"""Partial sums depend on how many threads share the work, so no machine may choose its own."""

_ENVIRONMENT: Final = {
    "TF_ENABLE_ONEDNN_OPTS": "0",  # its kernels differ between processors
    "TF_DETERMINISTIC_OPS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
}
_PACKAGES: Final = ("tensorflow-cpu", "tensorflow", "keras", "numpy", "scipy", "pillow",
                    "ai-edge-litert", "coremltools")  # fmt: skip


def pin(seed: int) -> dict[str, Any]:
    """Pin everything that results depend on; return the pins, to be recorded with the run.

    To be called in a fresh interpreter, before TensorFlow: raises :class:`MLError` where
    TensorFlow is there already and was not pinned.
    """
    unset = {key: value for key, value in _ENVIRONMENT.items() if os.environ.get(key) != value}
    if unset and "tensorflow" in sys.modules:
        message = f"TensorFlow was loaded before {', '.join(unset)} could be pinned"
        raise MLError(message, code="pinned_too_late")
    os.environ.update(_ENVIRONMENT)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - Keras and TensorFlow draw from the old generator
    return {"seed": seed, "threads": THREADS, "onednn": False, **_versions()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run linear algebra in one thread, whichever libraries are loaded.

    Its sums depend on the number of threads, and for matrices of our size the threads mostly
    wait for each other, in a busy loop. The environment would be read only at NumPy's import.
    """
    import scipy.linalg  # noqa: F401 - brings a library of its own, which has to be there by now
    import threadpoolctl

    with threadpoolctl.threadpool_limits(limits=1):
        yield


def pin_tensorflow(seed: int) -> Any:
    """Import TensorFlow, pinned; return the module. Every user of TensorFlow here comes this way.

    Calling it again sets the seeds back, so that one step's result does not depend on the last.
    """
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    if not tf.config.threading.get_intra_op_parallelism_threads():
        try:
            tf.config.threading.set_intra_op_parallelism_threads(THREADS)
            tf.config.threading.set_inter_op_parallelism_threads(THREADS)
        except RuntimeError:
            # Someone ran an operation before us (an interactive session): results are still
            # repeatable on this machine.
            pass
    return tf


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
