"""Training that is done once: seeded, stopped where the validation data says, and kept outside git."""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from infer.drafts import file_draft

Model = TypeVar("Model", bound=nn.Module)


def cache() -> Path:
    """Where trained weights and prepared data are kept: $INFER_ZOO_CACHE, or ~/.cache/infer-zoo."""
    path = Path(os.environ.get("INFER_ZOO_CACHE") or Path.home() / ".cache/infer-zoo")
    path.mkdir(parents=True, exist_ok=True)
    return path


def trained(make: Callable[[], Model], train: Callable[[Model], None]) -> Model:
    """What `make` makes, in eval mode, with the weights that `train` gives it, from the cache if they are
    there.

    The key covers the file that `train` is in and what it imports of the zoo, so that changing the model,
    the data's split or the training trains again: weights of another split may have seen the test data.
    """
    path = kept_at(train, ".safetensors")
    torch.manual_seed(0)  # the first weights are part of the training
    model = make()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    train(model)
    with file_draft(path) as draft:
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, draft)
    return model.eval()


def trained_folder(train: Callable[[Path], None]) -> Path:
    """The model folder that `train` writes to the path it gets, from the cache if it is there.

    The key is that of `trained`.
    """
    path = kept_at(train, "")
    if not path.is_dir():
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            draft = Path(scratch) / "model"
            train(draft)
            draft.rename(path)
    return path


def kept_at(train: Callable[..., None], ending: str) -> Path:
    """Where the cache has what `train` makes. The path changes with the files that `trained` speaks of."""
    file = Path(inspect.getfile(train))
    key = hashlib.sha256(torch.__version__.encode())
    for source in sources(file):
        key.update(source.read_bytes())
    return cache() / f"{file.stem}-{train.__name__}-{key.hexdigest()[:16]}{ending}"


def sources(file: Path) -> list[Path]:
    """`file`, this file, and the files of the zoo that these import, and theirs."""
    found: list[Path] = []
    waiting = [file, Path(__file__)]
    while waiting:
        source = waiting.pop()
        if source not in found and source.is_file():
            found.append(source)
            names = re.findall(
                r"^from bench\.zoo(?:\.| import )(\w+)", source.read_text("utf-8"), re.MULTILINE
            )
            waiting += [Path(__file__).with_name(f"{name}.py") for name in names]
    return sorted(found)


def fit(
    model: nn.Module,
    step: Callable[[torch.Tensor], torch.Tensor],
    rows: int,
    validate: Callable[[], float],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    patience: int = 3,
) -> float:
    """AdamW with a cosine schedule; the weights of the epoch with the best validation score stay.

    `step` gives the loss of the training rows whose places it gets; `validate` a score, more is
    better. Stops after `patience` epochs without a better one. Returns the best score.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    per_epoch = (rows + batch_size - 1) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    best, best_state, since = float("-inf"), copy.deepcopy(model.state_dict()), 0
    for _ in range(epochs):
        model.train()
        for places in _shuffled(rows, batch_size):
            optimizer.zero_grad()
            step(places).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            score = validate()
        if score > best:
            best, best_state, since = score, copy.deepcopy(model.state_dict()), 0
        else:
            since += 1
            if since >= patience:
                break
    model.load_state_dict(best_state)
    model.eval()
    return best


def _shuffled(rows: int, batch_size: int) -> Iterator[torch.Tensor]:
    yield from torch.randperm(rows).split(batch_size)
