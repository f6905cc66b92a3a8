"""infer: run trained models, proved equal to their PyTorch originals, without torch.

with infer.load("model.infer") as session:
    outputs = session.run({"x": x})     # arrays by name
    result = session(item)              # the task's own result
"""

from __future__ import annotations

from infer.artifact import Artifact
from infer.errors import (
    ArtifactError,
    BackendError,
    ConversionError,
    DeviceError,
    FeedError,
    InferError,
    InputError,
    IntegrityError,
    MissingPackageError,
    ParityError,
    SessionClosedError,
)
from infer.machine import Machine, this_machine
from infer.manifest import Manifest
from infer.options import PlanOptions, SessionOptions
from infer.plan import Plan
from infer.session import Session, load, open_artifact, open_session
from infer.signature import Signature, TensorSpec

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "BackendError",
    "ConversionError",
    "DeviceError",
    "FeedError",
    "InferError",
    "InputError",
    "IntegrityError",
    "Machine",
    "Manifest",
    "MissingPackageError",
    "ParityError",
    "Plan",
    "PlanOptions",
    "Session",
    "SessionClosedError",
    "SessionOptions",
    "Signature",
    "TensorSpec",
    "__version__",
    "load",
    "open_artifact",
    "open_session",
    "this_machine",
]
