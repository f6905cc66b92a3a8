"""The one error tree. Every error a caller can cause is an `InferError`.

    InferError
    ├── ArtifactError            an artifact is missing, malformed, or of another format version
    │   ├── IntegrityError       a file differs from what the manifest recorded
    │   └── RehearsalError       a graph that is not trusted failed where it was tried first
    ├── ConversionError          a source cannot be read, exported or written
    │   └── ParityError          the export answers differently from the source
    ├── FeedError                a tensor handed to `Session.run` does not fit the signature
    ├── InputError               an image, text or row handed to a task cannot be read
    ├── DeviceError              the requested device, or way to run there, cannot be had
    ├── BackendError             the backend failed on a graph or a run
    ├── SessionClosedError       the session was closed, or belongs to another process
    ├── OverloadedError          too many requests wait already
    ├── DeadlineError            no answer was had in the time that was given
    └── MissingPackageError      an optional package is absent or broken; the message ends with its
                                 install command

Messages name the thing, what was expected, what came, and the cure. Exceptions of other
libraries are translated where they cross into ours, always with `from`.
"""

from __future__ import annotations


class InferError(Exception):
    """Something the caller can mend went wrong; the message says what and how."""


class ArtifactError(InferError):
    """An artifact is missing, malformed, or of a format version this release does not read."""


class IntegrityError(ArtifactError):
    """A file of an artifact differs from the size or sha256 its manifest recorded."""


class RehearsalError(ArtifactError):
    """A graph that is not trusted failed in the process in which it was tried, and so was not loaded."""


class ConversionError(InferError):
    """A source could not be read, exported, or written as an artifact."""


class ParityError(ConversionError):
    """An exported graph ran, but its outputs differ from the source's beyond the tolerance."""


class FeedError(InferError):
    """A tensor given to `Session.run` does not fit the signature."""


class InputError(InferError):
    """An input given to a task (image, text, row) could not be read or is out of range."""


class DeviceError(InferError):
    """The requested device is not present, no installed backend can use it, or not in the way asked for."""


class BackendError(InferError):
    """The backend refused a graph or failed while running it."""


class SessionClosedError(InferError):
    """The session was closed, or was opened in a process this one was forked from."""


class OverloadedError(InferError):
    """Too many requests wait already; try again later."""


class DeadlineError(InferError):
    """There was no answer in the time that the caller gave."""


class MissingPackageError(InferError):
    """An optional package is needed; the message ends with the command that installs it."""


_MODULES = {"mlcommons-loadgen": "mlperf_loadgen", "pillow": "PIL", "scikit-learn": "sklearn"}
"""What packages are imported as, where that is not their own name."""


def missing_package(package: str, extra: str, error: Exception) -> MissingPackageError:
    """The error for an optional `package`, which the extra `extra` brings, and whose import gave `error`.

    Only a package that was not found is absent; one that fails while it is imported is broken, by a library
    of the system that does not load, for instance, and installing it again may not help.
    """
    absent = isinstance(error, ModuleNotFoundError) and error.name == _MODULES.get(package, package)
    cause = " ".join(str(error).split())[:300]
    said = "is not installed" if absent else f"does not import here ({type(error).__name__}: {cause})"
    cure = "install it" if absent else "mend that, or install it again"
    again = "" if absent else "--force-reinstall "
    return MissingPackageError(
        f"this needs the package '{package}', which {said}; {cure} with:"
        f' pip install {again}"infer-onnx[{extra}]"'
    )
