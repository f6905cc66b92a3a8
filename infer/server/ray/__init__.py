"""Sessions on a Ray cluster: behind Ray Serve, and over the rows of a Ray Data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer.errors import missing_package

try:
    import ray  # noqa: F401 -- said once, for all files of this folder
except ImportError as _error:
    raise missing_package("ray", "ray", _error) from _error

if TYPE_CHECKING:
    from infer.server.ray.data import BatchSession
    from infer.server.ray.options import ReplicaOptions
    from infer.server.ray.serving import application, from_config

__all__ = ["BatchSession", "ReplicaOptions", "application", "from_config"]

# imported when they are first used: a worker of Ray Data has no need of Ray Serve, and starts sooner
_PLACES = {
    "BatchSession": "data",
    "ReplicaOptions": "options",
    "application": "serving",
    "from_config": "serving",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module 'infer.server.ray' has no attribute '{name}'")
    return getattr(import_module(f"infer.server.ray.{_PLACES[name]}"), name)
