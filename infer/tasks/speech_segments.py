"""From the probability of speech in each window to segments of speech.

The rules are those of silero-vad's `get_speech_timestamps` (MIT licence), one window at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from infer.errors import ArtifactError


@dataclass(frozen=True)
class SpeechSegment:
    """From when to when somebody speaks, in seconds from the start."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class SegmentRules:
    """Speech begins with a window of at least `threshold`, and ends where windows stay below
    `end_threshold` (by default 0.15 less) for `min_silence_ms`.

    Speech of `min_speech_ms` or less is dropped. Segments grow by `pad_ms` at both ends, or meet in the
    middle. Speech longer than `max_speech_s` is cut at its longest pause of more than `min_pause_ms`, or
    where it stands.
    """

    threshold: float = 0.5
    end_threshold: float | None = None
    min_speech_ms: float = 250.0
    max_speech_s: float | None = None
    min_silence_ms: float = 100.0
    min_pause_ms: float = 98.0
    pad_ms: float = 30.0

    def check(self) -> None:
        """Raise `ArtifactError` if a field is out of range."""
        durations = [self.min_speech_ms, self.min_silence_ms, self.min_pause_ms, self.pad_ms]
        if not all(0 <= value < math.inf for value in durations):
            raise ArtifactError("durations of the segment rules must be finite and at least 0 ms")
        if not all(0 <= value <= 1 for value in (self.threshold, self.end_threshold or 0.0)):
            raise ArtifactError("thresholds of the segment rules must be 0 to 1")
        if self.max_speech_s is not None and not 2e-3 * self.pad_ms < self.max_speech_s:
            raise ArtifactError("max_speech_s of the segment rules must be more than its padding")


class Segmenter:
    """Takes probabilities of windows in turn; knows the segments so far."""

    def __init__(self, rules: SegmentRules, sample_rate: int, window: int) -> None:
        def samples(milliseconds: float) -> float:
            return sample_rate * milliseconds / 1000

        self._rate, self._window = sample_rate, window
        self._begin = rules.threshold
        below = rules.end_threshold
        self._end = max(rules.threshold - 0.15, 0.01) if below is None else below
        self._min_speech, self._min_silence = samples(rules.min_speech_ms), samples(rules.min_silence_ms)
        self._min_pause, self._pad = samples(rules.min_pause_ms), samples(rules.pad_ms)
        longest = math.inf if rules.max_speech_s is None else rules.max_speech_s
        self._max_speech = sample_rate * longest - window - 2 * self._pad
        self._done: list[tuple[int, int]] = []  # without padding, in samples
        self._start: int | None = None  # of the speech under way
        self._quiet: int | None = None  # since when its windows are below the end threshold
        self._pauses: list[tuple[int, int]] = []  # in it: start and length
        self._place = 0

    @property
    def speaking(self) -> bool:
        """Whether speech is under way."""
        return self._start is not None

    def add(self, probability: float) -> None:
        """Take the next window."""
        here, self._place = self._place, self._place + self._window
        loud = probability >= self._begin
        if loud and self._quiet is not None:
            if here - self._quiet > self._min_pause:
                self._pauses.append((self._quiet, here - self._quiet))
            self._quiet = None
        if self._start is None:
            if loud:
                self._start = here
            return
        if here - self._start > self._max_speech:
            if not self._pauses:
                self._finish(here)
                return
            pause, length = max(self._pauses, key=lambda found: found[1])
            self._finish(pause)
            self._start = pause + length
        if probability < self._end:
            self._quiet = here if self._quiet is None else self._quiet
            if here - self._quiet >= self._min_silence:
                self._finish(self._quiet, drop_short=True)

    def segments(self, length: int) -> list[SpeechSegment]:
        """The segments so far; `length` samples have come, and speech under way ends there."""
        found = list(self._done)
        if self._start is not None and length - self._start > self._min_speech:
            found.append((self._start, length))
        starts, ends = [start for start, _ in found], [end for _, end in found]
        if found:
            starts[0] = int(max(0, starts[0] - self._pad))
            ends[-1] = int(min(length, ends[-1] + self._pad))
        for i in range(len(found) - 1):
            between = starts[i + 1] - ends[i]
            if between < 2 * self._pad:
                ends[i] += between // 2
                starts[i + 1] = max(0, starts[i + 1] - between // 2)
            else:
                ends[i] = int(min(length, ends[i] + self._pad))
                starts[i + 1] = int(max(0, starts[i + 1] - self._pad))
        return [
            SpeechSegment(start / self._rate, end / self._rate)
            for start, end in zip(starts, ends, strict=True)
        ]

    def _finish(self, end: int, *, drop_short: bool = False) -> None:
        assert self._start is not None
        if not drop_short or end - self._start > self._min_speech:
            self._done.append((self._start, end))
        self._start = self._quiet = None
        self._pauses = []
