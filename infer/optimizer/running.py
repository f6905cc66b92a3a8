"""How the best is run: on how many threads, and what its library does otherwise by default.

One thing after another is tried on the best graph, and kept if it is faster here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infer.backends import load_backend
from infer.measure.statistics import verdict
from infer.optimizer.gates import Contender
from infer.optimizer.outcome import Outcome, Settings
from infer.optimizer.timing import speed_said
from infer.optimizer.trial import Trial
from infer.optimizer.verdict import Verdict
from infer.planner import MOST_STREAMS

SWITCHES = {
    "no-spinning": ("spinning", 2),  # threads that wait keep cores from whoever else needs them
    "no-prepacking": ("prepacking", 1),  # a few rows do not repay a layout made for many
}
"""What to try on ONNX Runtime → what it turns off, and from how many threads on."""


@dataclass(frozen=True)
class Running:
    """Tries settings on the best of `outcome`, or on `start`, and notes there what was kept. `check_time`
    is called before each step, and may raise."""

    trial: Trial
    start: Verdict
    outcome: Outcome
    check_time: Callable[[], None]

    @property
    def best(self) -> Verdict:
        """What is tried on."""
        return self.outcome.best or self.start

    @property
    def contender(self) -> Contender:
        """The best, as it is run so far."""
        return self.trial.timing.contender(self.best, self.outcome.settings)

    def tune(self) -> None:
        """Try all that could help."""
        if self.trial.reference.plan.device != "cpu":
            return
        self._threads()
        if self.best.backend == "onnxruntime":
            self._switches()
        if self.trial.options.objective == "throughput":
            self._streams()

    def _threads(self) -> None:
        """Fewer threads are faster for small graphs."""
        if self.trial.options.num_threads is not None:
            return
        most = self.trial.reference.plan.num_threads
        for count in sorted({1, most // 2} - {0, most}, reverse=True):
            self._try(f"threads-{count}", replace(self.outcome.settings, num_threads=count))

    def _switches(self) -> None:
        """What ONNX Runtime does by default, and does not always pay."""
        for name, (setting, threads) in SWITCHES.items():
            if self.outcome.settings.num_threads >= threads:
                self._try(name, replace(self.outcome.settings, **{setting: False}))

    def _streams(self) -> None:
        """Several runs at once, twice as many while that is faster: they share the threads, which must not
        spin then, or divide them; or each has a thread."""
        count, most = 2, min(self.trial.reference.plan.num_threads, MOST_STREAMS)
        sharing = min(self.outcome.settings.num_threads, most)
        while count <= sharing and self._try(f"streams-{count}", self._at_once(count)):
            count *= 2
        if self.best.backend == "onnxruntime" and most > 1 and self.trial.options.num_threads is None:
            self._try("a-thread-each", replace(self._at_once(most), num_threads=1))
        settings = self.outcome.settings
        if settings.streams is None and not settings.spinning:  # a plan would have several by itself
            self.outcome.settings = replace(settings, streams=1)

    def _at_once(self, count: int) -> Settings:
        settings = self.outcome.settings
        spinning = settings.spinning and not load_backend(self.best.backend).spins
        return replace(settings, streams=count, spinning=spinning)

    def _try(self, name: str, settings: Settings) -> bool:
        """Whether the best is faster so, and is run so from now on."""
        found = self.trial.workshop.known(name)
        if found is None:
            self.check_time()
            best = self.best
            contender = replace(self.trial.timing.contender(best, settings), name=f"{best.name}, {name}")
            ratio = self.trial.timing.ratio(contender, self.contender)
            found = self.trial.workshop.note(
                Verdict(
                    name,
                    verdict(ratio) == "faster",
                    speed_said(ratio),
                    best.precision,
                    best.exact,
                    best.backend,
                    ratio=ratio,
                    against=best.name,
                )
            )
        if found.kept:
            self.outcome.settings = settings
        return found.kept
