"""What a search is asked for, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from infer.artifact import Artifact
from infer.backends import load_backend
from infer.machine import this_machine
from infer.manifest import Saturation
from infer.measure.statistics import Estimate
from infer.optimizer.budget import EQUAL, Budget
from infer.optimizer.contract import Counted, Shortfall, shortfalls
from infer.optimizer.material import Data
from infer.optimizer.targets import saturates
from infer.optimizer.verdict import Verdict

OBJECTIVES = {"latency": 1, "throughput": 8, "size": 1}
"""What is to become better → the rows of a feed that is timed."""

REFERENCE = "reference"
"""What the graph that it began with is called."""

WHOLE = "all together"
"""The verdict about all that was kept, beside the reference."""

INTERRUPTED, OUT_OF_TIME = "interrupted", "out of time"


@dataclass(frozen=True)
class OptimizeOptions:
    """How to optimize.

    Attributes:
        budgets: all must hold. Without any, answers must be equal, and nothing that approximates is tried.
        data: inputs of the task, with their answers if a budget is about a metric.
        objective: one of `OBJECTIVES`.
        time_s: nothing new is begun after so many seconds.
        gate_s: how long a variant is timed beside what it would replace.
        device, num_threads: as in `PlanOptions`.
        backends: those to try, by name; all that are installed, if none is named.
        prepare: keep the best graph as the backend optimizes it here, too, if that loads sooner.
        overwrite: replace an artifact at the output.
    """

    budgets: tuple[Budget, ...] = ()
    data: Data | None = None
    objective: str = "latency"
    time_s: float = 600.0
    gate_s: float = 6.0
    device: str = "auto"
    num_threads: int | None = None
    backends: tuple[str, ...] = ()
    prepare: bool = True
    overwrite: bool = False

    @property
    def budget(self) -> str:
        """What answers are held to, in words."""
        return " and ".join(map(str, self.budgets)) or EQUAL


def runtime_of(backend: str) -> str:
    """A library and its version. Raises `MissingPackageError`."""
    return f"{backend} {load_backend(backend).version}"


@dataclass(frozen=True)
class Settings:
    """How a graph is run, as in `PlanOptions`."""

    num_threads: int
    spinning: bool = True
    prepacking: bool = True
    huge_pages: bool = False
    streams: int | None = None

    @property
    def said(self) -> str:
        """In a few words."""
        streams = f", {self.streams} runs at once" if (self.streams or 1) > 1 else ""
        pages = ", memory in huge pages" if self.huge_pages else ""
        return f"threads {self.num_threads}{streams}{pages}"


def at_once(settings: Settings, streams: int, backend: str) -> Settings:
    """The same for so many runs at once: threads that spin would keep cores from the other runs."""
    spinning = settings.spinning and not load_backend(backend).spins
    return replace(settings, streams=streams, spinning=spinning)


@dataclass(frozen=True)
class OtherRows:
    """What answers feeds of other sizes sooner than the best.

    Attributes:
        variant, found: its name, and the verdict that says where its graph is.
        change: what was done to that.
        settings, runtime: as for the best.
        rows: at how many it was measured, and took `ratio` of the best's time.
        rows_from: where feeds begin to be large.
        larger: whether it is for these, and the best for smaller ones; or the other way round.
    """

    variant: str
    found: Verdict
    change: str
    settings: Settings
    runtime: str
    rows: int
    ratio: Estimate
    rows_from: int
    larger: bool

    @property
    def said(self) -> str:
        """In a few words."""
        where = f"{'from' if self.larger else 'below'} {self.rows_from} rows"
        return f"{where} {self.variant} on {self.found.backend}, {self.settings.said}"


@dataclass
class Outcome:
    """What is worth keeping so far.

    Attributes:
        variants: name → its verdict, which says where its graph is; the last one is best.
        changes: variant → pass or recipe → what it did.
        settings: of the best.
        runtime: the library that runs the best, and its version.
        ratio: time of the best over the reference's.
        other: for feeds of other sizes, if that pays.
        saturation: verdict that plans run → what its int8 products would be on x86 without VNNI.
    """

    settings: Settings
    variants: dict[str, Verdict] = field(default_factory=dict)
    changes: dict[str, dict[str, str]] = field(default_factory=dict)
    runtime: str = ""
    ratio: Estimate | None = None
    other: OtherRows | None = None
    saturation: dict[str, Saturation] = field(default_factory=dict)

    @property
    def best(self) -> Verdict | None:
        """The fastest variant, if there is one beside the reference."""
        return next(reversed(self.variants.values()), None)

    @property
    def running(self) -> list[Verdict]:
        """What plans run, beside the reference."""
        other = self.other.found if self.other is not None else None
        return [found for found in (self.best, other) if found is not None]

    def keep(self, variant: str, verdict: Verdict, change: str, runtime: str) -> None:
        """Note a verdict as the best so far, in the place of others of its kind: there is one variant that
        keeps the numbers, and one that does not."""
        self.runtime = runtime
        before = self.changes.get(variant, {})
        for name, other in list(self.variants.items()):
            if other.exact == verdict.exact:
                del self.variants[name]
        self.variants[variant] = verdict
        self.changes[variant] = {**before, verdict.name: change}

    def without_best(self, settings: Settings, runtime: str) -> Outcome:
        """What is left if the best is not kept: what keeps the numbers, where the best does not, else
        nothing, on this runtime."""
        found = Outcome(settings, runtime=runtime)
        for name, verdict in list(self.variants.items())[:-1]:
            if verdict.exact:
                found.variants[name], found.changes[name] = verdict, self.changes[name]
                found.runtime = runtime_of(verdict.backend)
        return found


@dataclass(frozen=True)
class Optimized:
    """What came of it: the artifact at the output, all that was tried, and what was worth keeping.

    Attributes:
        budget: what answers were held to, and `metrics` the reference's, if it is about any.
        data: what answers were judged on.
        whole: what is one node in the exact graph, as the default backend optimizes it.
        unfinished: why not all was tried: "", `INTERRUPTED` or `OUT_OF_TIME`.
    """

    artifact: Artifact
    verdicts: tuple[Verdict, ...]
    outcome: Outcome
    budget: str
    metrics: dict[str, float]
    data: str
    whole: Counted
    unfinished: str

    @property
    def shortfalls(self) -> list[Shortfall]:
        """What the original does more often than is fused; see `contract.shortfalls`."""
        census = self.artifact.manifest.provenance.census
        return shortfalls(self.verdicts, census, self.whole, self.unfinished)

    @property
    def replaced(self) -> frozenset[str]:
        """Verdicts that were kept at their time, and are not in the output: something else took their place
        later, or all together was slower."""
        kept = {verdict.name for verdict in self.verdicts if verdict.kept}
        used = {name for variant in self.outcome.variants for name in self.outcome.changes[variant]}
        if any(verdict.name == WHOLE and not verdict.kept for verdict in self.verdicts):
            return frozenset(kept - used)
        if self.outcome.other is not None:
            used.add(self.outcome.other.found.name)
        graphs = {verdict.name for verdict in self.verdicts if verdict.kept and verdict.graph is not None}
        return frozenset(graphs - used)

    @property
    def nearest(self) -> Verdict | None:
        """Of what approximates and was over the budget, the one whose answers are nearest; None if
        something was within it, or nothing was tried."""
        tried = [verdict for verdict in self.verdicts if not verdict.exact and verdict.figures]
        if not tried or any(verdict.within for verdict in tried):
            return None
        return max(tried, key=lambda verdict: verdict.figures["cosine"])

    @property
    def in_steps(self) -> bool:
        """Whether what was kept was timed step by step alone, and not as a whole beside the original."""
        return self.unfinished == INTERRUPTED and any(verdict.kept for verdict in self.verdicts)

    @property
    def elsewhere(self) -> str:
        """What products of int8 would be on the other kind of x86; "" if there are none."""
        ordered = sorted(self.outcome.saturation.values(), key=lambda each: (each.seen, each.possible))
        if not ordered:
            return ""
        worst = ordered[-1]
        if worst.possible:
            return f"{worst}{', and answers would be others' if worst.seen else ''}; tune it there"
        if saturates(this_machine()):
            return "with VNNI int8 is faster, and weights need not be bounded; tune it there"
        return f"{worst}, where int8 gains less; tune it there"

    @property
    def best(self) -> str:
        """The name of the variant that is fastest here."""
        return next(reversed(self.outcome.variants), self.artifact.manifest.variants[0].name)
