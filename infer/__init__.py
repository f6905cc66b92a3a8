"""infer: run trained models, proved equal to their PyTorch originals, without torch.

with infer.load("model.infer") as session:
    outputs = session.run({"x": x})     # arrays by name
    result = session(item)              # the task's own result
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which takes longer to import than all else here

if TYPE_CHECKING:
    from infer.artifact import Artifact
    from infer.backends.ort import share_threads
    from infer.errors import (
        ArtifactError,
        BackendError,
        ConversionError,
        DeadlineError,
        DeviceError,
        FeedError,
        InferError,
        InputError,
        IntegrityError,
        MissingPackageError,
        OverloadedError,
        ParityError,
        RehearsalError,
        SessionClosedError,
    )
    from infer.evaluation import evaluate
    from infer.live import LiveSession
    from infer.machine import Machine, this_machine
    from infer.manifest import Manifest
    from infer.options import BatchOptions, LoadLimits, PlanOptions, SessionOptions, ShadowOptions
    from infer.plan import Plan
    from infer.session import Session, load, open_artifact, open_session
    from infer.signature import Signature, TensorSpec

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "ArtifactError",
    "BackendError",
    "BatchOptions",
    "ConversionError",
    "DeadlineError",
    "DeviceError",
    "FeedError",
    "InferError",
    "InputError",
    "IntegrityError",
    "LiveSession",
    "LoadLimits",
    "Machine",
    "Manifest",
    "MissingPackageError",
    "OverloadedError",
    "ParityError",
    "Plan",
    "PlanOptions",
    "RehearsalError",
    "Session",
    "SessionClosedError",
    "SessionOptions",
    "ShadowOptions",
    "Signature",
    "TensorSpec",
    "__version__",
    "evaluate",
    "load",
    "open_artifact",
    "open_session",
    "share_threads",
    "this_machine",
]

# Where the names are. They are imported when they are first used: the command line starts by importing this
# file, and must be able to listen for Ctrl-C before numpy is loaded.
_PLACES = {
    "artifact": ("Artifact",),
    "backends.ort": ("share_threads",),
    "errors": (
        "ArtifactError",
        "BackendError",
        "ConversionError",
        "DeadlineError",
        "DeviceError",
        "FeedError",
        "InferError",
        "InputError",
        "IntegrityError",
        "MissingPackageError",
        "OverloadedError",
        "ParityError",
        "RehearsalError",
        "SessionClosedError",
    ),
    "evaluation": ("evaluate",),
    "live": ("LiveSession",),
    "machine": ("Machine", "this_machine"),
    "manifest": ("Manifest",),
    "options": ("BatchOptions", "LoadLimits", "PlanOptions", "SessionOptions", "ShadowOptions"),
    "plan": ("Plan",),
    "session": ("Session", "load", "open_artifact", "open_session"),
    "signature": ("Signature", "TensorSpec"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for place, names in _PLACES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"infer.{place}"), name)
            return value
    raise AttributeError(f"module 'infer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
