"""voice-activity: a recording in, segments of speech out; whole, or as it arrives.

The model takes one window at a time, and its state goes from each window to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infer.errors import ArtifactError, InputError
from infer.signature import Array
from infer.tasks import Setting, synthetic
from infer.tasks.rows import answer
from infer.tasks.sound import SoundStream, open_sound
from infer.tasks.sound_features import fit
from infer.tasks.speech_segments import Segmenter, SegmentRules, SpeechSegment

_MAX_SAMPLES_AT_ONCE = 2**20  # of a window
_MAX_STATE = 2**24  # values, 64 MiB


@dataclass(frozen=True)
class VoiceActivitySpec:
    """`input` takes `context` samples of the last window and a new `window`, float32, shape =
    (1, context + window); `output` is the probability of speech in it.

    `states` maps inputs to the outputs that hold their next values; they start as zeros. `constants` are
    fed as they are, to inputs without dims.
    """

    input: str
    output: str
    sample_rate: int
    window: int
    context: int = 0
    states: dict[str, str] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    rules: SegmentRules = field(default_factory=SegmentRules)


class VoiceActivity:
    """An input is what `open_sound` takes; a result is a list of `SpeechSegment`, in order of time."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.spec = setting.decode(VoiceActivitySpec)
        self._first = self._check()

    def __call__(self, inputs: Any) -> Any:
        return answer(inputs, lambda many: [self._one(recording) for recording in many])

    def stream(self, sample_rate: int | None = None) -> VoiceStream:
        """A stream of its own, for chunks at `sample_rate` Hz, the model's by default."""
        return VoiceStream(self, self.spec.sample_rate if sample_rate is None else sample_rate)

    def probabilities(self, recording: Any) -> Array:
        """The probability of speech in each window of a recording: float32, shape = (windows,). The last
        window is filled up with silence."""
        walk = Walk(self)
        return np.array(list(walk.through(self._windows(recording))), np.float32)

    def first_state(self) -> dict[str, Array]:
        """What the states are before the first window."""
        return {name: np.zeros(shape, dtype) for name, (shape, dtype) in self._first.items()}

    def synthetic(self, rng: np.random.Generator) -> tuple[Array, int]:
        return synthetic.recording(rng, self.spec.sample_rate)

    def read(self, path: Path) -> Sequence[Any]:
        return [path]

    def parse(self, text: str) -> Any:
        return Path(text)

    def to_json(self, result: Any) -> Any:
        return {"segments": [asdict(segment) for segment in result]}

    def describe(self, result: Any) -> str:
        lines = [f"{segment.start_s:9.2f} s  to {segment.end_s:9.2f} s" for segment in result]
        return "\n".join(lines) or "no speech"

    def _one(self, recording: Any) -> list[SpeechSegment]:
        stream = self.stream()
        stream.add(open_sound(recording, self.spec.sample_rate))
        return stream.finish()

    def _windows(self, recording: Any) -> Iterator[Array]:
        sound = open_sound(recording, self.spec.sample_rate)
        for start in range(0, len(sound), self.spec.window):
            yield fit(sound[start : start + self.spec.window], self.spec.window)

    def _check(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Hold the spec to the graph. Shapes and dtypes of the states. Raises `ArtifactError`."""
        spec, name = self.spec, self.setting.name
        spec.rules.check()
        sizes = [spec.sample_rate, spec.window, spec.context + 1]
        if not all(1 <= size <= _MAX_SAMPLES_AT_ONCE for size in sizes):
            raise ArtifactError(
                f"sample_rate and window of task '{name}' must be 1 to {_MAX_SAMPLES_AT_ONCE}, context 0 to"
                f" one less"
            )
        taken = self.setting.input(spec.input, dtypes=("float32",), rank=2)
        for size, dim in zip((1, spec.context + spec.window), taken.dims, strict=True):
            if isinstance(dim, int) and dim != size:
                raise ArtifactError(
                    f"the task '{name}' feeds windows [1, {spec.context + spec.window}], but the graph"
                    f" takes {taken}; convert the model again with the size of its windows"
                )
        output = next((s for s in self.setting.signature.outputs if s.name == spec.output), None)
        self.setting.output(
            spec.output, dtypes=("float32", "float64"), rank=len(output.dims) if output else 2
        )
        self.setting.feeds_all([spec.input, *spec.states, *spec.constants])
        for constant in spec.constants:
            self.setting.input(constant, dtypes=("int64", "int32", "float32"), rank=0)
        return {state: self._state(state, result) for state, result in spec.states.items()}

    def _state(self, state: str, result: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        found = next((s for s in self.setting.signature.inputs if s.name == state), None)
        rank = len(found.dims) if found else 0
        fed = self.setting.input(state, dtypes=("float32", "float64", "float16"), rank=rank)
        self.setting.output(result, dtypes=(fed.dtype,), rank=rank)
        shape = tuple(1 if isinstance(dim, str) else dim for dim in fed.dims)  # a batch of one stream
        if math.prod(shape) > _MAX_STATE:
            raise ArtifactError(f"the state {fed} is larger than {_MAX_STATE} values")
        return shape, fed.numpy_dtype


class Walk:
    """The model's way through one recording: its state and the end of the last window."""

    def __init__(self, task: VoiceActivity) -> None:
        self._setting, self._spec = task.setting, task.spec
        self._state = task.first_state()
        self._context = np.zeros(task.spec.context, np.float32)
        dtypes = {spec.name: spec.numpy_dtype for spec in task.setting.signature.inputs}
        self._constants = {
            name: np.array(value, dtypes[name]) for name, value in task.spec.constants.items()
        }

    def through(self, windows: Iterator[Array]) -> Iterator[float]:
        """The probability of speech in each window. Raises `ArtifactError`."""
        spec = self._spec
        for window in windows:
            samples = np.concatenate([self._context, window])
            feeds: Mapping[str, Array] = {spec.input: samples[None], **self._state, **self._constants}
            outputs = self._setting.run(feeds)
            found = outputs[spec.output]
            if found.size != 1:
                raise ArtifactError(
                    f"the output '{spec.output}' must be one probability a window, but has shape"
                    f" {list(found.shape)}"
                )
            self._state = {state: outputs[result] for state, result in spec.states.items()}
            self._context = samples[len(samples) - spec.context :]
            yield float(found.reshape(()))


class VoiceStream:
    """A recording as it arrives. Each stream has a state of its own; streams of one session do not disturb
    each other. One stream is for one thread.

    stream = session.task.stream()
    for chunk in microphone:
        probabilities = stream.add(chunk)    # of the windows it completed
        stream.speaking, stream.segments     # so far
    segments = stream.finish()
    """

    def __init__(self, task: VoiceActivity, sample_rate: int) -> None:
        spec = task.spec
        self._window, self._rate = spec.window, spec.sample_rate
        self._sound = SoundStream(sample_rate, spec.sample_rate)
        self._walk = Walk(task)
        self._segmenter = Segmenter(spec.rules, spec.sample_rate, spec.window)
        self._rest = np.zeros(0, np.float32)  # samples that do not fill a window yet
        self._length = 0  # of what the model has heard, in samples
        self._finished = False

    @property
    def speaking(self) -> bool:
        """Whether the last window was part of speech, or of a pause too short to end it."""
        return self._segmenter.speaking and not self._finished

    @property
    def segments(self) -> list[SpeechSegment]:
        """The segments in what the model has heard; the last may go on."""
        return self._segmenter.segments(self._length)

    def add(self, chunk: Array) -> Array:
        """The probability of speech in each window that `chunk` completes: float32, shape = (windows,).

        `chunk` is an array of any length, also 0, of a type that `open_sound` takes. Raises `InputError`.
        """
        self._check_open()
        return self._hear(self._sound.add(chunk))

    def finish(self) -> list[SpeechSegment]:
        """All segments; the last window is filled up with silence. Nothing can be added afterwards."""
        self._check_open()
        self._hear(self._sound.add(np.zeros(0, np.float32), last=True))
        if len(self._rest):
            length = self._length + len(self._rest)
            self._hear(np.zeros(self._window - len(self._rest), np.float32))
            self._length = length  # the silence is not part of the recording
        self._finished = True
        return self.segments

    def _hear(self, samples: Array) -> Array:
        samples = np.concatenate([self._rest, samples])
        count = len(samples) // self._window
        self._rest = samples[count * self._window :]
        windows = iter(samples[: count * self._window].reshape(count, self._window))
        found = np.empty(count, np.float32)
        for i, probability in enumerate(self._walk.through(windows)):
            found[i] = probability
            self._segmenter.add(probability)
            self._length += self._window
        return found

    def _check_open(self) -> None:
        if self._finished:
            raise InputError("the stream is finished; make another with session.task.stream()")
