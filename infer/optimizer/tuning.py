"""How the best is run: on how many threads, and what its library does otherwise by default.

One thing after another is tried on the best graph, and kept if it is faster here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from infer.errors import InferError
from infer.huge_pages import huge_pages_work
from infer.measure.statistics import Estimate, verdict
from infer.optimizer.by_rows import WORTH, other_rows, rows_said
from infer.optimizer.gates import Contender
from infer.optimizer.outcome import Outcome, Settings, at_once
from infer.optimizer.timing import Choice, speed_said
from infer.optimizer.trial import Trial
from infer.optimizer.verdict import Verdict
from infer.planner import MOST_STREAMS

SWITCHES = {
    "no-spinning": ("spinning", 2),  # threads that wait keep cores from whoever else needs them
    "no-prepacking": ("prepacking", 1),  # a few rows do not repay a layout made for many
}
"""What to try on ONNX Runtime → what it turns off, and from how many threads on."""


@dataclass(frozen=True)
class Tuning:
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

    def do_all(self) -> None:
        """Try all that could help."""
        if self.trial.reference.plan.device != "cpu":
            return
        self._threads()
        if self.best.backend == "onnxruntime":
            self._switches()
        if self.trial.options.objective == "throughput":
            self._streams()
        if huge_pages_work():
            self._try("huge-pages", replace(self.outcome.settings, huge_pages=True))

    def _threads(self) -> None:
        """Fewer threads are faster for small graphs."""
        if self.trial.options.num_threads is not None:
            return
        most, other = self.trial.reference.plan.num_threads, other_rows(self.trial)
        for count in sorted({1, most // 2} - {0, most}, reverse=True):
            self._try(f"threads-{count}", replace(self.outcome.settings, num_threads=count), other)

    def _switches(self) -> None:
        """What ONNX Runtime does by default, and does not always pay."""
        other = other_rows(self.trial)
        for name, (setting, threads) in SWITCHES.items():
            if self.outcome.settings.num_threads >= threads:
                self._try(name, replace(self.outcome.settings, **{setting: False}), other)

    def _streams(self) -> None:
        """Several runs at once, twice as many while that is faster: they share the threads, which must not
        spin then, or divide them; or each has a thread."""
        count, most = 2, min(self.trial.reference.plan.num_threads, MOST_STREAMS)
        sharing = min(self.outcome.settings.num_threads, most)
        while count <= sharing and self._try(f"streams-{count}", self._at_once(count)):
            count *= 2
        if self.best.backend == "onnxruntime" and most > 1 and self.trial.options.num_threads is None:
            self._try("a-thread-each", replace(self._at_once(most), num_threads=1))
        settings, two = self.outcome.settings, self.trial.workshop.known("streams-2")
        no_gain = two is not None and two.ratio is not None and verdict(two.ratio) in ("slower", "alike")
        if settings.streams is None and not settings.spinning and no_gain:
            # a plan without spinning would have several by itself
            self.outcome.settings = replace(settings, streams=1)

    def _at_once(self, count: int) -> Settings:
        return at_once(self.outcome.settings, count, self.best.backend)

    def _try(self, name: str, settings: Settings, rows: int | None = None) -> bool:
        """Whether the best is faster so, without a loss with so many rows that it is not worth, and is run
        so from now on."""
        found = self.trial.workshop.known(name)
        if found is None:
            self.check_time()
            best = self.best
            contender = replace(self.trial.timing.contender(best, settings), name=f"{best.name}, {name}")
            found = Verdict(name, False, "", best.precision, best.exact, best.backend, against=best.name)
            try:
                if settings.huge_pages:
                    own = Choice(best, self.outcome.settings)
                    ratio = self.trial.timing.apart(Choice(best, settings), own)
                else:
                    ratio = self.trial.timing.ratio(contender, self.contender)
            except InferError as error:  # several runs at once may take more memory than there is
                found = replace(found, why=f"it fails: {error}")
            else:
                kept, why = verdict(ratio) == "faster", speed_said(ratio)
                if kept and rows is not None and (lost := self._lost(contender, ratio, rows)):
                    kept, why = False, lost
                found = replace(found, kept=kept, why=why, ratio=ratio)
            self.trial.workshop.note(found)
        if found.kept:
            self.outcome.settings = settings
        return found.kept

    def _lost(self, contender: Contender, ratio: Estimate, rows: int) -> str:
        """What is lost with so many rows, if what is gained is not worth it; "" also if it is so much that
        they get a plan of their own."""
        try:
            other = self.trial.timing.ratio(contender, self.contender, rows)
        except InferError:  # these rows cannot be run, however it is set
            return ""
        if verdict(other) != "slower" or ratio.value <= WORTH or other.value * WORTH > 1:
            return ""
        return f"faster, but ×{other.value:.2f} with {rows_said(rows)}"
