"""converters: from a trained PyTorch model to an artifact that is proved equal to it.

import converters
artifact = converters.convert(module, "net.infer", example_inputs={"x": x})
"""

from __future__ import annotations

from infer.errors import missing_package

try:
    import torch  # noqa: F401
except (ImportError, OSError) as _error:
    raise missing_package("torch", "convert", _error) from _error
try:
    import onnx_ir  # noqa: F401
    import onnxscript  # noqa: F401
except (ImportError, OSError) as _error:
    raise missing_package("onnxscript", "convert", _error) from _error

from converters.api import convert
from converters.options import ConvertOptions
from converters.source import Source
from infer.manifest import TaskSpec

__all__ = ["ConvertOptions", "Source", "TaskSpec", "convert"]
