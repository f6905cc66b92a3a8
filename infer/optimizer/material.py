"""What variants are calibrated, judged and timed with: the user's data, or what can be made without any."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from infer.errors import FeedError, InferError, InputError
from infer.evaluation import EVALUATORS, Dataset, is_paired, items_of, read_dataset
from infer.feeds import Feeds, batch_dim, example_feeds, resized, sizes_of
from infer.machine import this_machine
from infer.optimizer.batches import row_axes, row_of
from infer.optimizer.tables import ids_of
from infer.session import Session
from infer.signature import Array, Signature, TensorSpec
from infer.tasks import SyntheticTask

CALIBRATION, JUDGED, TIMED = 128, 256, 8
"""The most feeds of each use. More say hardly more, and take longer."""

MEASURED, _MEASURED_S = 2048, 20.0
"""The most inputs for metrics of the task, which need more to tell half a point, and how long the reference
may take for more than `JUDGED` of them: every attempt is measured on them."""

_ANSWERS = 1 / 16
"""The part of the memory that answers to judged feeds may take; those of a variant are held beside them."""

_MADE = 16
_LENGTHS = (0.5, 1.5, 2.0)
"""How long made-up feeds are, over the example's length."""


@dataclass(frozen=True)
class Material:
    """Feeds of one input each, or of as few rows as the model takes. No feed of `calibration` is among
    `judged`, unless there are too few.

    Attributes:
        timed: of several sizes, where judged feeds differ in size.
        dataset: inputs that calibration did not see with their answers, for metrics of the task, the judged
            ones among them; None without.
        rehearsal: the same of the calibration inputs.
        described: where they are from, for the evidence.
    """

    calibration: tuple[Feeds, ...]
    judged: tuple[Feeds, ...]
    timed: tuple[Feeds, ...]
    dataset: Dataset | None
    rehearsal: Dataset | None
    described: str

    @property
    def digest(self) -> str:
        """Changes with any of the feeds."""
        found = hashlib.sha256()
        for feeds in (*self.calibration, *self.judged, *self.timed):
            for name, array in feeds.items():
                found.update(f"{name} {array.dtype} {array.shape} ".encode())
                found.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
        return found.hexdigest()

    def rehearsed(self, most: int) -> Material:
        """Calibration in the place of what is judged, for decisions that judging must not see."""
        return replace(self, judged=self.calibration[:most], dataset=self.rehearsal)


Data = Path | Dataset | Sequence[Any]
"""A file or folder, inputs with their answers, or inputs alone, as the task takes them."""


def material(session: Session, data: Data | None, batch: int = 1) -> Material:
    """From the data, or made; timed feeds have `batch` rows. Raises `InputError`."""
    if data is None:
        return _synthetic(session, batch) or _like_golden(session, batch)
    name, inputs, dataset = _read(session, data)
    paired = dataset is not None and is_paired(session.task)
    asked = [_asked(inputs[i], i, paired) for i in range(len(inputs))]
    calibrating, judging = _halves(asked)
    start = time.perf_counter()
    judged = _encoded(session, asked, judging, JUDGED, name, judged=True)
    measured = _measured(asked, judging, (time.perf_counter() - start) / len(judged))

    def part(places: Sequence[int]) -> Dataset | None:
        if dataset is None:
            return None
        return Dataset(dataset.name, [inputs[i] for i in places], [dataset.expected[i] for i in places])

    described = (
        f"{len(judged)} feeds of {name} that calibration did not see"
        if calibrating != judging
        else f"the {len(judged)} feeds of {name}, which calibration has seen"
    )
    if dataset is not None and len(measured) != len(judged):
        described += f"; metrics, if any, on {len(measured)} {'pairs of such' if paired else 'such inputs'}"
    return Material(
        calibration=_encoded(session, asked, calibrating, CALIBRATION, name),
        judged=judged,
        timed=_timed(session.signature, judged, batch),
        dataset=part(measured),
        rehearsal=part(calibrating),
        described=described,
    )


def _asked(entry: Any, place: int, paired: bool) -> dict[Any, Any]:
    """What the task is asked of an entry of the data, by what tells it from that of others."""
    return items_of(entry) if paired else {place: entry}


def _halves(asked: Sequence[Mapping[Any, Any]]) -> tuple[list[int], list[int]]:
    """Places of entries to calibrate with and to judge, which have nothing in common; all for both if there
    are too few. Pairs that have something of either half are for neither."""
    places = np.random.default_rng(0).permutation(len(asked)).tolist()
    most = min(CALIBRATION, len({key for items in asked for key in items}) // 2)
    seen: set[Any] = set()
    for place in places:
        if len(seen) >= most:
            break
        seen.update(asked[place])
    calibrating = [place for place in places if asked[place].keys() <= seen]
    judging = [place for place in places if not asked[place].keys() & seen]
    return (calibrating, judging) if calibrating and judging else (places, places)


def _read(session: Session, data: Data) -> tuple[str, Sequence[Any], Dataset | None]:
    """What the data is called, its inputs, and these with their answers if there are any."""
    dataset = None
    if isinstance(data, Dataset):
        name, inputs, dataset = data.name, data.inputs, data
    elif not isinstance(data, Path):
        name, inputs = "the inputs given", data
    else:
        task, name = session.task, data.name
        setting = getattr(task, "setting", None)
        if session.artifact.manifest.task is None:
            inputs = [
                row
                for file in _files(data)
                for feeds in task.read(file)
                for row in _rows(session.signature, feeds)
            ]
        elif setting is not None and setting.name in EVALUATORS:
            dataset = read_dataset(task, data)
            inputs = dataset.inputs
        else:
            inputs = task.read(data)
    if not len(inputs):
        raise InputError(f"the data '{name}' is empty; variants can be judged with one input or more")
    return name, inputs, dataset


def _files(data: Path) -> Sequence[Path]:
    """A file, or those of a folder."""
    return sorted(data.glob("*.npz")) if data.is_dir() else [data]


def _rows(signature: Signature, feeds: Mapping[str, Array]) -> Sequence[Mapping[str, Array]]:
    """Feeds for each row of the arrays; these as they are, if one row cannot be asked alone, or they do not
    fit."""
    dim = batch_dim(signature)
    axes = row_axes(signature.inputs, dim) or {}
    fitting = all(name in feeds and feeds[name].ndim > axis for name, axis in axes.items())
    counts = {feeds[name].shape[axis] for name, axis in axes.items()} if fitting else set()
    if dim is None or len(counts) != 1 or not signature.allows(dim, 1):
        return [feeds]
    return [row_of(feeds, axes, row) for row in range(counts.pop())]


def _measured(asked: Sequence[Mapping[Any, Any]], places: Sequence[int], each_s: float) -> list[int]:
    """Of these entries, those whose metrics are measured: those that ask no more than the first so many
    inputs, by powers of two, so that the same data gives the same ones again."""
    most = JUDGED
    while most < MEASURED and 2 * most * each_s <= _MEASURED_S:
        most *= 2
    keys = dict.fromkeys(key for place in places for key in asked[place])
    chosen = set(islice(keys, most))
    return [place for place in places if asked[place].keys() <= chosen]


def _encoded(
    session: Session,
    asked: Sequence[Mapping[Any, Any]],
    places: Sequence[int],
    most: int,
    data: str,
    *,
    judged: bool = False,
) -> tuple[Feeds, ...]:
    """What the task feeds the graph for what these entries of the data ask, one at a time so that nothing
    is padded: at most so many feeds, and if they are `judged`, no more than can be answered within
    `_ANSWERS`, but one.

    Raises `InputError` for an input that the task refuses, or whose answer has no elements, or NaN and
    nothing else.
    """
    seen: list[Feeds] = []
    room = this_machine().memory_bytes * _ANSWERS if judged else math.inf

    def run(feeds: Mapping[str, object]) -> dict[str, Array]:
        nonlocal room
        seen.append({name: np.asarray(feed) for name, feed in feeds.items()})
        answer = session.run(feeds)
        room -= sum(array.nbytes for array in answer.values())
        if not any(array.size for array in answer.values()):
            raise InputError("the reference's answer has no elements; take it out of the data")
        if all_nan(answer):
            raise InputError(
                f"the reference answers with NaN alone, so nothing can be"
                f" {'judged' if judged else 'calibrated'} by it; take it out of the data, or mend the model"
            )
        return answer

    task = session.task_on(run)
    items = {key: (item, place) for place in places for key, item in asked[place].items()}
    for key, (item, place) in items.items():
        try:
            task([item])
        except (InputError, FeedError) as error:
            said = f"'{key}'" if isinstance(key, (str, Path)) else f"input {place + 1}"
            raise InputError(f"{said} of {data}: {error}") from error
        if len(seen) >= most or room < 0:
            break
    return tuple(seen[:most])


def _says_nothing(answer: Mapping[str, Array]) -> bool:
    """Whether every answer would be as right."""
    return all_nan(answer) or not any(array.size for array in answer.values())


def all_nan(answer: Mapping[str, Array]) -> bool:
    """Whether there are floats in it, and all of them are NaN."""
    floats = [array for array in answer.values() if array.dtype.kind == "f" and array.size]
    return bool(floats) and all(bool(np.isnan(array).all()) for array in floats)


def _timed(signature: Signature, feeds: Sequence[Feeds], batch: int) -> tuple[Feeds, ...]:
    """From the smallest feed to the largest, in even steps."""
    ordered = sorted(feeds, key=lambda each: sum(array.size for array in each.values()))
    sizes = {_shapes(each) for each in ordered}
    count = min(TIMED, len(ordered)) if len(sizes) > 1 else 1
    places = np.linspace(0, len(ordered) - 1, count + 2)[1:-1].round().astype(int)
    chosen = [ordered[place] for place in dict.fromkeys(places.tolist())]
    if batch == 1 or batch_dim(signature) is None:
        return tuple(chosen)
    dim = batch_dim(signature)
    assert dim is not None
    return tuple(resized(signature, each, {dim: signature.nearest(dim, batch)}) for each in chosen)


def _synthetic(session: Session, batch: int) -> Material | None:
    """Of inputs that the task makes up, and of the example; None if the task cannot, or the model does not
    take them."""
    task, signature = session.task, session.signature
    if not isinstance(task, SyntheticTask):
        return None
    rng = np.random.default_rng(0)
    try:
        found = material(session, [task.synthetic(rng) for _ in range(2 * _MADE)], batch)
    except InferError:
        return None
    if not session.artifact.manifest.golden:
        return replace(found, described=_weak(f"{len(found.judged)} made-up inputs"))
    dim = batch_dim(signature)
    example = example_feeds(session.artifact)
    example = example if dim is None else resized(signature, example, {dim: signature.nearest(dim, 1)})
    (asked,) = _timed(signature, (example,), batch)
    known = any(_shapes(asked) == _shapes(feeds) for feeds in found.timed)
    return replace(
        found,
        judged=(*found.judged, example),
        timed=found.timed if known else (*found.timed, asked),
        described=_weak(f"{len(found.judged)} made-up inputs and the example"),
    )


def _weak(described: str) -> str:
    return f"{described}: weak evidence, give real ones with --data"


def _shapes(feeds: Feeds) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in feeds.values())


def _like_golden(session: Session, batch: int) -> Material:
    """Like the golden feeds: other integers up to their largest, floats with noise, other lengths. Where
    these say nothing of the ids of a table, any that it has."""
    signature, artifact = session.signature, session.artifact
    golden = example_feeds(artifact)
    unknown = {name for name, feed in golden.items() if feed.size < 2 or not artifact.manifest.golden}
    ids: dict[str, int] = {}
    if unknown:
        found_ids = ids_of(ir.load(artifact.file(artifact.manifest.variants[0].graph)).graph)
        ids = {name: count for name, count in found_ids.items() if name in unknown}
    dim = batch_dim(signature)
    one = golden if dim is None else resized(signature, golden, {dim: signature.nearest(dim, 1)})
    rng = np.random.default_rng(0)
    found = []
    for number in range(_MADE * 2):
        feeds = {
            spec.name: _like(spec, one[spec.name], rng, ids.get(spec.name)) for spec in signature.inputs
        }
        found.append(_other_length(session, feeds, number, dim))
    judged = tuple(feeds for feeds in found[_MADE:] if not _says_nothing(session.run(feeds)))
    if not judged:
        raise InputError(
            "the model answers all feeds that were made up with NaN alone, or with nothing at all as where"
            " no object is found, so nothing can be judged by them; give real ones with --data"
        )
    return Material(
        calibration=tuple(found[:_MADE]),
        judged=judged,
        timed=_timed(signature, judged, batch),
        dataset=None,
        rehearsal=None,
        described=_weak(f"{len(judged)} made-up feeds"),
    )


def _like(spec: TensorSpec, array: Array, rng: np.random.Generator, ids: int | None) -> Array:
    if ids is not None:
        return rng.integers(0, ids, array.shape).astype(array.dtype)
    if spec.dtype == "string" or array.size < 2 or "mask" in spec.name or array.dtype.kind == "b":
        return array
    shuffled = rng.permutation(array.ravel()).reshape(array.shape)
    if array.dtype.kind in "iu":
        if array.min() >= 0 and array.max() > 1:
            shuffled = rng.integers(0, int(array.max()) + 1, array.shape)
        return shuffled.astype(array.dtype)
    noise = rng.standard_normal(array.shape) * (0.1 * float(array.std()) or 0.1)
    return np.asarray(shuffled + noise, array.dtype)


def _other_length(session: Session, feeds: Feeds, number: int, batch: str | None) -> Feeds:
    """Dims but the batch at other sizes, each at its own, or all at as much more or less, if the graph can
    be run so."""
    signature = session.signature
    own = {
        dim: size
        for dim, size in sizes_of(signature, feeds).items()
        if dim != batch and dim not in signature.limits
    }
    if not own or number % 2:
        return feeds
    for step in (1, 0):
        factors = [_LENGTHS[(number // 2 + step * place) % len(_LENGTHS)] for place in range(len(own))]
        sizes = {
            dim: max(1, round(factor * size))
            for (dim, size), factor in zip(own.items(), factors, strict=True)
        }
        try:
            other = resized(signature, feeds, sizes)
            session.run(other)
        except InferError:
            continue
        return other
    return feeds
