"""Core ML files run where there is no Core ML: on Linux, in NumPy, by the published definitions.

::

    from worker.ml.coreml import CoreMLModel

    model = CoreMLModel(Path("recyclables.mlpackage.zip"))
    probabilities = model.predict([photo])

See ``docs/coreml-on-linux.md`` for what this shows and what it cannot.
"""

from __future__ import annotations

from worker.ml.coreml.comparison import Comparison, compare
from worker.ml.coreml.errors import OperatorUnknown
from worker.ml.coreml.model import CoreMLModel, Feature

__all__ = ["Comparison", "CoreMLModel", "Feature", "OperatorUnknown", "compare"]
