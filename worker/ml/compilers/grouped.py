"""Trace convolutions in groups as one operator, which Core ML Tools can read.

Keras wraps them in a function compiled by XLA, as TensorFlow's CPU kernels cannot run them.
Tracing runs nothing, so the wrapper can go while a network is traced to be converted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class _WithoutXla:
    """TensorFlow, but functions that ask for XLA are left as they are."""

    def __init__(self, tensorflow: Any) -> None:
        self._tensorflow = tensorflow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensorflow, name)

    def function(self, *arguments: Any, jit_compile: bool | None = None, **options: Any) -> Any:
        """Stand in for ``tf.function``."""
        if jit_compile:
            return _unchanged
        return self._tensorflow.function(*arguments, **options)


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@contextlib.contextmanager
def without_xla() -> Iterator[None]:
    """Within it, Keras's convolutions are traced without XLA. Not for running them."""
    from keras.src.backend.tensorflow import nn

    before = nn.tf
    nn.tf = _WithoutXla(before)
    try:
        yield
    finally:
        nn.tf = before
