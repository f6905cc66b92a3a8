"""PyTorch as it is, following its performance tuning guide where that speaks of inference on CPUs."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench.peers.model import Feeds, Given, Loaded
from converters.sources import SourceRequest, open_source
from infer.signature import Array

_TRIAL_S, _TURNS = 1.0, 5
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def load(given: Given) -> Loaded:
    """The module in eval mode and `torch.inference_mode`; channels last where that is faster here."""
    torch.set_num_threads(given.threads)
    module = open_source(SourceRequest(given.path, "model")).module.eval()
    feeds = given.example()
    rank = max(array.ndim for array in feeds.values() if array.dtype.kind == "f" or array.ndim < 4)
    chosen, said = torch.contiguous_format, ""
    if rank in _CHANNELS_LAST:
        # the guide advises it for vision models; whether it helps depends on the model and the processor
        chosen = _fastest(
            {
                layout: _prepare(_laid_out(copy.deepcopy(module), layout, rank), layout, feeds)
                for layout in (torch.contiguous_format, _CHANNELS_LAST[rank])
            }
        )
        said = f", {'contiguous' if chosen is torch.contiguous_format else 'channels last'} (tried both)"
    module = _laid_out(module, chosen, rank)
    return Loaded(
        f"torch {torch.__version__}, eager, threads {torch.get_num_threads()}{said}",
        lambda feeds: _prepare(module, chosen, feeds),
        lambda found: {name: tensor.numpy() for name, tensor in tensors(found).items()},
    )


def _prepare(module: torch.nn.Module, layout: torch.memory_format, feeds: Feeds) -> Callable[[], Any]:
    given = {name: tensor(array) for name, array in feeds.items()}
    if layout is not torch.contiguous_format:
        given = {
            name: value.contiguous(memory_format=layout) if value.ndim in _CHANNELS_LAST else value
            for name, value in given.items()
        }

    def call() -> Any:
        with torch.inference_mode():
            return module(**given)

    return call


def _laid_out(module: torch.nn.Module, layout: torch.memory_format, rank: int) -> torch.nn.Module:
    if rank in _CHANNELS_LAST and not isinstance(module, torch.jit.ScriptModule):
        module.to(memory_format=layout)  # type: ignore[call-overload]
    return module


def _fastest(calls: Mapping[torch.memory_format, Callable[[], Any]]) -> torch.memory_format:
    """The one whose median call is shortest; they take turns, so that a slow moment is charged to all."""
    taken: dict[torch.memory_format, list[float]] = {layout: [] for layout in calls}
    for call in calls.values():
        call()
    until = time.perf_counter() + _TRIAL_S
    for turn in itertools.count(1):
        for layout, call in calls.items():
            start = time.perf_counter()
            call()
            taken[layout].append(time.perf_counter() - start)
        if turn >= _TURNS and time.perf_counter() >= until:
            break
    return min(taken, key=lambda layout: statistics.median(taken[layout]))


def tensor(array: Array) -> torch.Tensor:
    """The same memory as a tensor."""
    return torch.from_numpy(array)


def tensors(found: Any, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of what a module returned, named as infer names them."""
    if isinstance(found, torch.Tensor):
        return {path or "output": found}
    if isinstance(found, Mapping):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in found.items()]
    elif isinstance(found, (list, tuple)):
        items = [(f"{path}.{i}" if path else f"output_{i}", item) for i, item in enumerate(found)]
    else:
        items = []
    return {name: leaf for where, item in items for name, leaf in tensors(item, where).items()}
