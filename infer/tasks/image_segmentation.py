"""image-segmentation: a picture, scan or volume in; the class of every pixel, and the area of every
class, out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array
from infer.tasks import Setting, synthetic
from infer.tasks.intensities import ScanSpec, check_scan_spec, prepare, synthetic_intensities
from infer.tasks.interpolation import resized, strips
from infer.tasks.labels import activate
from infer.tasks.pixels import Step, apply_steps, open_picture, synthetic_picture
from infer.tasks.rows import Part, answer, answer_parts, fixed_batch
from infer.tasks.scans import Scan, open_scan
from infer.tasks.windows import PADDINGS, Canvas, Windows, padded, places

MODES = ("argmax", "sigmoid")

# what one batch may hold: more does not keep the cores busier, but takes memory
_BATCH_SIZE = 8
_BATCH_NUMBERS = 2**20

_MAX_SCORES = 2**29
"""Scores kept of one picture, classes times pixels, may be this many (2 GiB)."""

_MAX_MULTIPLE = 4096

_EDGE = 64
"""How many points a scan that is made up has along an axis, if the model takes any."""


@dataclass(frozen=True)
class ImageSegmentationSpec:
    """`input` and `output` name the tensors: (batch, channels, *spatial) and (batch, classes, *spatial).

    steps      how pictures become feeds
    scan       how scans of one channel do, if that is what the model takes: see `ScanSpec`
    mode       "argmax": a pixel has one class. "sigmoid": a class is where its score is above
               `threshold`, and classes may overlap
    labels     one a class, or none
    resize     whether scores are interpolated to the input's own size; else the mask has the model's
    windows    large inputs go through the model in these; else as a whole
    multiple   inputs are padded to multiples of this along each axis, where there are no windows
    padding    with what: "reflect", "edge" or "constant" (0)
    spacing_mm the size of a pixel along each axis, of inputs that do not say theirs
    keep_scores  whether results carry the score of every class at every pixel
    """

    input: str
    output: str
    steps: tuple[Step, ...] = ()
    scan: ScanSpec | None = None
    labels: tuple[str, ...] = ()
    mode: str = "argmax"
    threshold: float = 0.5
    resize: bool = True
    windows: Windows | None = None
    multiple: int = 1
    padding: str = "reflect"
    spacing_mm: tuple[float, ...] = ()
    keep_scores: bool = False


@dataclass(frozen=True)
class ClassArea:
    """How much of an input a class covers: pixels, their share, and `size` in mm² (of a volume, mm³)
    where the spacing is known."""

    label: str
    index: int
    pixels: int
    share: float
    size: float | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What is where.

    Attributes:
        mask: int32. With "argmax", or one class: shape = the input's own, upright; each pixel's class,
            or 1 where the one class is. With "sigmoid": shape = (classes, *the input's own), 0 or 1.
        labels: names of the classes, or none.
        areas: of every class.
        scores: float32, shape = (classes, *the input's own), if the spec keeps them.
    """

    mask: Array
    labels: tuple[str, ...]
    areas: tuple[ClassArea, ...]
    scores: Array | None = None


@dataclass(frozen=True)
class Subject:
    """An input as the model takes it: `array`, float32, shape = (channels, *spatial); and the `shape` and
    spacing the input itself has."""

    array: Array
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] = ()


class _Sheet:
    """One input on its way: which windows are out, and what came back."""

    def __init__(self, place: int, subject: Subject, spec: ImageSegmentationSpec) -> None:
        self.place = place
        self.shape, self.spacing_mm = subject.shape, subject.spacing_mm
        self.windows = spec.windows
        spatial = subject.array.shape[1:]
        want = (
            spec.windows.size if spec.windows else [-(-n // spec.multiple) * spec.multiple for n in spatial]
        )
        self.array: Array | None
        self.array, self.inner = padded(subject.array, want, spec.padding)
        self._grid = self.array.shape[1:]
        self._places = list(places(self._grid, spec.windows)) if spec.windows else [()]
        self._canvas = Canvas(self._grid, spec.windows) if spec.windows else None
        self._missing = len(self._places)

    def pieces(self) -> Iterator[_Piece]:
        assert self.array is not None
        for place in self._places:
            yield _Piece(self, place, self.array[(slice(None), *place)])
        self.array = None  # every piece has its own view

    def take(self, place: tuple[slice, ...], scores: Array) -> Array | None:
        """The scores of the whole input once the last piece came, shape = (classes, *spatial)."""
        self._missing -= 1
        if self._canvas is None:
            # of a smaller map, the part that is not padding
            scale = [n / g for n, g in zip(scores.shape[1:], self._grid, strict=True)]
            inner = (
                slice(round(a.start * s), round(a.stop * s)) for a, s in zip(self.inner, scale, strict=True)
            )
            return scores[(slice(None), *inner)]
        assert self.windows is not None
        if len(scores) * math.prod(self._grid) > _MAX_SCORES:
            raise InputError(
                f"{len(scores)} scores for each of {' × '.join(map(str, self._grid))} points are more than"
                f" {_MAX_SCORES}; cut the input into smaller ones"
            )
        if scores.shape[1:] != self.windows.size:
            scores = resized(scores, self.windows.size)
        self._canvas.lay(place, scores)
        if self._missing:
            return None
        return self._canvas.blended()[(slice(None), *self.inner)]


@dataclass(frozen=True)
class _Piece:
    sheet: _Sheet
    at: tuple[slice, ...]
    array: Array


class ImageSegmentation:
    """An input is what `open_picture` takes, or with `scan`, what `open_scan` takes; a result is a
    `Segmentation`."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(ImageSegmentationSpec)
        self._axes = self._check()

    def __call__(self, inputs: Any) -> Any:
        return answer(
            inputs, lambda many: answer_parts(self.setting, self.parts(many), self.decode, self.join)
        )

    def parts(self, inputs: Sequence[Any]) -> Iterator[Part]:
        """Feeds: float32, shape = (batch, channels, *spatial). A row is an input, or a window of one: then
        its place is there several times."""
        batch: list[_Piece] = []
        for piece in self._pieces(inputs):
            room = fixed_batch(self.setting.signature) or _rows_of(piece.array.shape)
            if batch and (batch[0].array.shape != piece.array.shape or len(batch) >= room):
                yield self._part(batch)
                batch = []
            batch.append(piece)
        if batch:
            yield self._part(batch)

    def decode(self, outputs: Mapping[str, Array], about: Sequence[Any]) -> list[Segmentation | None]:
        """A result for each row that was an input's last one, and None for the others."""
        found = outputs[self.spec.output]
        if found.ndim != self._axes + 2 or found.dtype.kind != "f":
            raise ArtifactError(
                f"the output '{self.spec.output}' must be floats of shape (batch, classes, *{self._axes}"
                f" axes), but is {found.dtype} {list(found.shape)}"
            )
        self._check_classes(found.shape[1])
        results: list[Segmentation | None] = []
        for piece, scores in zip(about, found, strict=True):
            whole = piece.sheet.take(piece.at, scores)
            results.append(None if whole is None else self._segmentation(whole, piece.sheet))
        return results

    def join(self, rows: Sequence[Any]) -> Any:
        """The result of an input from what `decode` gave for its windows: the last one completed it."""
        return rows[-1]

    def synthetic(self, rng: np.random.Generator) -> Array | Scan:
        spec = self.spec
        if spec.scan is None:
            return synthetic_picture(rng, spec.steps)
        taken = self.setting.input(spec.input).dims[2:]
        shape = spec.windows.size if spec.windows else [n if isinstance(n, int) else _EDGE for n in taken]
        array = synthetic.leaves(rng, tuple(shape), 1)[..., 0]
        return Scan(synthetic_intensities(array, spec.scan), spec.scan.spacing_mm or spec.spacing_mm)

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Segmentation) -> Any:
        """The mask as runs of equal values, row by row: `values[i]` comes `lengths[i]` times."""
        flat = result.mask.ravel()
        starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1))
        mask = {
            "shape": list(result.mask.shape),
            "values": flat[starts].tolist(),
            "lengths": np.diff(starts, append=flat.size).tolist(),
        }
        found = {"mask": mask, "areas": [asdict(area) for area in result.areas]}
        if result.scores is not None:
            found["scores"] = result.scores.tolist()
        return found

    def describe(self, result: Segmentation) -> str:
        """A line for each class that is there, the largest first."""
        points, unit = ("pixels", "mm²") if self._axes == 2 else ("voxels", "mm³")
        lines = []
        for area in sorted(result.areas, key=lambda area: -area.pixels):
            size = "" if area.size is None else f"  {area.size:.4g} {unit}"
            if area.pixels:
                name = " ".join(area.label.splitlines())
                lines.append(f"{area.share:7.2%}  {area.pixels} {points}{size}  {name}")
        return "\n".join(lines) or "nothing was found"

    def subject(self, source: Any) -> Subject:
        """An input, opened and prepared. Raises `InputError`."""
        if self.spec.scan is not None:
            scan = open_scan(source, self._axes)
            spacing = scan.spacing_mm or self.spec.spacing_mm
            array = prepare(Scan(scan.array, spacing), self.spec.scan)
            return Subject(array, scan.array.shape, spacing)
        picture = open_picture(source)
        array = apply_steps(picture, self.spec.steps)
        return Subject(array, (picture.height, picture.width), self.spec.spacing_mm)

    def _check(self) -> int:
        """What the spec says must fit the graph; the number of spatial axes."""
        spec, signature = self.spec, self.setting.signature
        inputs = {found.name: found for found in signature.inputs}
        outputs = {found.name: found for found in signature.outputs}
        for name, there in ((spec.input, inputs), (spec.output, outputs)):
            if name not in there:
                raise ArtifactError(f"the task names the tensor '{name}'; the graph has {', '.join(there)}")
        axes = len(inputs[spec.input].dims) - 2
        if axes not in ((2,) if spec.scan is None else (2, 3)):
            wants = "height, width" if spec.scan is None else "*2 or 3 axes"
            raise ArtifactError(
                f"the input must be (batch, channels, {wants}), but is {inputs[spec.input]}"
            )
        if spec.scan is not None:
            if spec.steps:
                raise ArtifactError("a task takes pictures, with 'steps', or scans, with 'scan', not both")
            check_scan_spec(spec.scan, axes)
        if len(outputs[spec.output].dims) != axes + 2:
            raise ArtifactError(
                f"the output must be (batch, classes, *{axes} axes), but is {outputs[spec.output]}"
            )
        if spec.mode not in MODES:
            raise ArtifactError(f"unknown mode '{spec.mode}'; use one of {', '.join(MODES)}")
        if spec.padding not in PADDINGS:
            raise ArtifactError(f"unknown padding '{spec.padding}'; use one of {', '.join(PADDINGS)}")
        if not 1 <= spec.multiple <= _MAX_MULTIPLE:
            raise ArtifactError(f"multiple must be from 1 to {_MAX_MULTIPLE}, but is {spec.multiple}")
        if not 0.0 <= spec.threshold <= 1.0:
            raise ArtifactError(f"threshold must be from 0 to 1, but is {spec.threshold}")
        if spec.spacing_mm and (len(spec.spacing_mm) != axes or min(spec.spacing_mm) <= 0):
            raise ArtifactError(
                f"spacing_mm must be {axes} positive numbers, but is {list(spec.spacing_mm)}"
            )
        if any(step.op == "center_crop" for step in spec.steps):
            raise ArtifactError(
                "a mask cannot be laid over a picture that was cropped; leave out 'center_crop'"
            )
        if spec.windows:
            spec.windows.check(axes)
        classes = outputs[spec.output].dims[1]
        if isinstance(classes, int):
            self._check_classes(classes)
        return axes

    def _check_classes(self, classes: int) -> None:
        if self.spec.labels and len(self.spec.labels) != classes:
            raise ArtifactError(
                f"the artifact has {len(self.spec.labels)} labels, but the model gives {classes} classes;"
                f" convert it again with one label for each class"
            )
        if classes < 2 and self.spec.mode == "argmax":
            raise ArtifactError(
                "the model gives one class, which is everywhere with argmax; use mode 'sigmoid'"
            )

    def _pieces(self, inputs: Sequence[Any]) -> Iterator[_Piece]:
        for place, source in enumerate(inputs):
            yield from _Sheet(place, self.subject(source), self.spec).pieces()

    def _part(self, batch: Sequence[_Piece]) -> Part:
        feed = np.stack([piece.array for piece in batch])
        return Part([piece.sheet.place for piece in batch], {self.spec.input: feed}, list(batch))

    def _segmentation(self, scores: Array, sheet: _Sheet) -> Segmentation:
        """The mask of an input from the scores of all its classes."""
        shape = sheet.shape if self.spec.resize else scores.shape[1:]
        several = self.spec.mode == "sigmoid" and len(scores) > 1
        if self.spec.keep_scores and len(scores) * math.prod(shape) > _MAX_SCORES:
            raise InputError(
                f"an input of {' × '.join(map(str, shape))} has more than {_MAX_SCORES} scores to keep;"
                f" cut it into smaller ones"
            )
        mask = np.empty((len(scores), *shape) if several else shape, np.int32)
        kept = np.empty((len(scores), *shape), np.float32) if self.spec.keep_scores else None
        for rows, strip in strips(scores, shape):
            if self.spec.mode == "argmax":
                mask[rows] = strip.argmax(axis=0)
                if kept is not None:
                    kept[:, rows] = np.moveaxis(activate(np.moveaxis(strip, 0, -1), "softmax"), -1, 0)
                continue
            likely = activate(strip, "sigmoid")
            if several:
                mask[:, rows] = likely > self.spec.threshold
            else:
                mask[rows] = likely[0] > self.spec.threshold
            if kept is not None:
                kept[:, rows] = likely
        spacing = sheet.spacing_mm if shape == sheet.shape else ()
        return Segmentation(mask, self.spec.labels, self._areas(mask, len(scores), spacing), kept)

    def _areas(self, mask: Array, classes: int, spacing_mm: tuple[float, ...]) -> tuple[ClassArea, ...]:
        if self.spec.mode == "argmax":
            counts: Iterable[Any] = np.bincount(mask.ravel(), minlength=classes)
        else:
            counts = mask.reshape(classes, -1).sum(axis=1, dtype=np.int64)
        points = mask.size // (1 if self.spec.mode == "argmax" else classes)
        unit = math.prod(spacing_mm) if spacing_mm else None
        return tuple(
            ClassArea(
                self.spec.labels[i] if self.spec.labels else str(i),
                i,
                int(count),
                int(count) / points,
                None if unit is None else int(count) * unit,
            )
            for i, count in enumerate(counts)
        )


def _rows_of(shape: Sequence[int]) -> int:
    """How many pieces of this shape go through the model together."""
    return max(1, min(_BATCH_SIZE, _BATCH_NUMBERS // math.prod(shape[1:])))
