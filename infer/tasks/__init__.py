"""Tasks turn what people have (a photo, a sentence, a row) into feeds, and outputs into what they
want (labels, vectors). One file a task, one table; none of them imports torch. A task whose
`row_by_row` is true makes its results of the outputs alone, row i for input i.

A task gets the session's `run` and decides itself how often to call it: once for a batch, or many
times with state carried from call to call. Its settings are data in the manifest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from numpy.random import Generator

from infer import schema
from infer.artifact import Artifact
from infer.errors import ArtifactError
from infer.manifest import TaskSpec
from infer.signature import Array, Signature, TensorSpec

Run = Callable[[Mapping[str, object]], dict[str, Array]]
"""`Session.run`: feeds to outputs."""

S = TypeVar("S")

TASKS: dict[str, str] = {
    "tensors": "infer.tasks.tensors:Tensors",
    "image-classification": "infer.tasks.image_classification:ImageClassification",
    "object-detection": "infer.tasks.object_detection:ObjectDetection",
    "image-embedding": "infer.tasks.image_embedding:ImageEmbedding",
    "face-embedding": "infer.tasks.image_embedding:ImageEmbedding",
    "image-segmentation": "infer.tasks.image_segmentation:ImageSegmentation",
    "text-classification": "infer.tasks.text_classification:TextClassification",
    "token-classification": "infer.tasks.token_classification:TokenClassification",
    "text-embedding": "infer.tasks.text_embedding:TextEmbedding",
    "tabular-classification": "infer.tasks.tabular_classification:TabularClassification",
    "tabular-regression": "infer.tasks.tabular_regression:TabularRegression",
    "recommendation": "infer.tasks.recommendation:Recommendation",
    "voice-activity": "infer.tasks.voice_activity:VoiceActivity",
    "speaker-embedding": "infer.tasks.speaker_embedding:SpeakerEmbedding",
    "audio-classification": "infer.tasks.audio_classification:AudioClassification",
}
"""Task name → where its class is. "tensors" is what an artifact without a task gets."""

EXTRAS: dict[str, tuple[str, ...]] = {
    "image-classification": ("image",),
    "object-detection": ("image",),
    "image-embedding": ("image",),
    "face-embedding": ("image",),
    "image-segmentation": ("image", "medical"),
    "text-classification": ("text",),
    "token-classification": ("text",),
    "text-embedding": ("text",),
    "voice-activity": ("audio",),
    "speaker-embedding": ("audio",),
    "audio-classification": ("audio",),
}
"""Task name → the extras of infer-onnx that it may ask for while it runs; the others need none."""


class Task(Protocol):
    """What `session(inputs)` and `infer run` need of a task."""

    def __call__(self, inputs: Any) -> Any:
        """The result for one input, or results for a list of inputs. Raises `InputError`."""
        ...

    def read(self, path: Path) -> Sequence[Any]:
        """The inputs a file holds. Raises `InputError`."""
        ...

    def parse(self, text: str) -> Any:
        """The input that one line of text holds. Raises `InputError`."""
        ...

    def to_json(self, result: Any) -> Any:
        """A result as plain JSON data."""
        ...

    def describe(self, result: Any) -> str:
        """A result for a person to read, one or more lines."""
        ...


@runtime_checkable
class StreamTask(Task, Protocol):
    """A task that reads a stream of lines as one: its first line may say what the others hold."""

    def parse_stream(self, lines: Iterable[str], where: str) -> Sequence[Any]:
        """The inputs that `lines` hold; `where` names them in errors. Raises `InputError`."""
        ...


@runtime_checkable
class SyntheticTask(Task, Protocol):
    """A task that can do without anybody's data."""

    def synthetic(self, rng: Generator) -> Any:
        """An input like those that people have: see `infer.tasks.synthetic`."""
        ...


@dataclass(frozen=True)
class Padding:
    """How rows of several lengths are made alike: input → what fills its second axis, at the right end or
    the left."""

    fill: Mapping[str, int]
    left: bool = False


@runtime_checkable
class PaddedTask(Task, Protocol):
    """A task that pads its rows."""

    @property
    def padding(self) -> Padding: ...


@dataclass(frozen=True)
class Setting:
    """What a task is built from: its artifact's signature, files and spec, and the way to run it."""

    name: str
    spec: Mapping[str, Any]
    signature: Signature
    structure: Any
    file: Callable[[str], Path]
    run: Run

    def input(
        self, name: str, *, dtypes: Collection[str] | None = None, rank: int | None = None
    ) -> TensorSpec:
        """The graph's input `name`, which a spec speaks of. Raises `ArtifactError` if it lacks it, or has
        one that is not of one of `dtypes` and of `rank` dims."""
        return self._tensor("input", name, self.signature.inputs, dtypes, rank)

    def output(
        self, name: str, *, dtypes: Collection[str] | None = None, rank: int | None = None
    ) -> TensorSpec:
        """The graph's output `name`. Raises as `input` does."""
        return self._tensor("output", name, self.signature.outputs, dtypes, rank)

    def feeds_all(self, names: Collection[str]) -> None:
        """Raise `ArtifactError` if the graph has inputs beside `names`."""
        if left := [spec.name for spec in self.signature.inputs if spec.name not in names]:
            raise ArtifactError(
                f"the task '{self.name}' does not feed the graph's input {', '.join(map(repr, left))};"
                f" convert the model again with a spec that names it, or without it"
            )

    def _tensor(
        self,
        kind: str,
        name: str,
        specs: Sequence[TensorSpec],
        dtypes: Collection[str] | None,
        rank: int | None,
    ) -> TensorSpec:
        found = next((spec for spec in specs if spec.name == name), None)
        if found is None:
            raise ArtifactError(
                f"the spec of task '{self.name}' names the {kind} {name!r:.60}, which the graph lacks; it"
                f" has {', '.join(spec.name for spec in specs)}; convert the model again with one of these"
            )
        if found.dtype not in (dtypes or [found.dtype]) or rank not in (None, len(found.dims)):
            wanted = [
                *([" or ".join(dtypes)] if dtypes else []),
                *([f"{rank} dims"] if rank is not None else []),
            ]
            raise ArtifactError(
                f"the task '{self.name}' needs an {kind} of {' with '.join(wanted)}, but the graph has"
                f" {found};"
                f" convert the model again with a spec that names another"
            )
        return found

    def decode(self, cls: type[S]) -> S:
        """The task's spec as its own class. Raises `ArtifactError`."""
        try:
            return schema.decode(cls, dict(self.spec), f"the spec of task '{self.name}'")
        except schema.SchemaError as error:
            raise ArtifactError(
                f"{error}; convert the model again with a spec that follows this"
            ) from error


def load_task(
    artifact: Artifact,
    run: Run,
    encode: Callable[..., Any] | None = None,
    decode: Callable[..., Any] | None = None,
) -> Task:
    """The task `artifact` was made for, with `encode` and `decode`, if given, in place of its own.

    Raises `ArtifactError` if this release does not have it, `InputError` if it needs its own functions.
    """
    manifest = artifact.manifest
    spec = manifest.task or TaskSpec("tensors")
    setting = Setting(spec.name, spec.spec, manifest.signature, manifest.structure, artifact.file, run)
    task: Task = task_class(spec.name)(setting)
    if encode is None and decode is None:
        return task
    from infer.tasks.custom import with_functions

    return with_functions(task, encode, decode)


def task_class(name: str) -> Any:
    """The class of the task called `name`. Raises `ArtifactError`."""
    if name not in TASKS:
        raise ArtifactError(
            f"there is no task '{name}' in this release of infer; it has: {', '.join(TASKS)}"
        )
    module, _, cls = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), cls)
