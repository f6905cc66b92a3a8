"""A recipe at work on one artifact: how it is made best, and which nodes it spares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from infer.optimizer.budget import Budget
from infer.optimizer.gates import Judged
from infer.optimizer.passes import Pass, PassResult
from infer.optimizer.recipes import Given, Recipe
from infer.optimizer.sensitivity import MOST, kept_in_float
from infer.optimizer.targets import Target
from infer.optimizer.trial import Attempt, Trial

_SEARCHED = 0.2
"""The part of the search's time that the sensitivity of nodes to one recipe may take."""


@dataclass(frozen=True)
class Making:
    """A recipe, for which target, and with what.

    Attributes:
        passes, compute_dtype: those that were kept for the target, on top of which it works.
        best: ways of recipes → the best of them, as far as was found; recipes that can be made in the same
            ways share it.
    """

    recipe: Recipe
    target: Target
    given: Given
    passes: Mapping[str, Pass]
    compute_dtype: str | None
    trial: Trial
    best: dict[tuple[str, ...], str]
    out_of_time: Callable[[], bool]

    @property
    def name(self) -> str:
        """What the attempt with all nodes is called."""
        return f"{self.recipe.name}-{self.compute_dtype}" if self.compute_dtype else self.recipe.name

    def attempt(self, name: str, keep: Collection[str], way: str = "") -> Attempt:
        """A variant in which the nodes `keep` stay as they are, made in the best way or the one named."""
        way = way or self._best_way()

        def build(model: ir.Model) -> PassResult:
            result = self.recipe.build(model, self.given, way, keep)
            for rewrite in self.passes.values():
                rewrite(model)
            return result

        return Attempt(
            name,
            self.target.backend,
            build,
            self.recipe.precision.format(way),
            exact=False,
            compute_dtype=self.compute_dtype,
        )

    def spared(self, name: str) -> Iterator[list[str]]:
        """Nodes to leave as they are so that the budgets hold; see `sensitivity.kept_in_float`."""

        def answered(keep: Sequence[str], budgets: Sequence[Budget]) -> Judged:
            return self.trial.rehearse(self.attempt(name, keep), budgets)

        # the best way was found by rehearsals, or there is one way alone
        each_s = self.trial.rehearsal_s
        most = int(_SEARCHED * self.trial.options.time_s / each_s) if each_s else MOST
        return kept_in_float(
            self.trial.costs(self.recipe.candidates(self.trial.workshop.load())),
            lambda keep: 1.0 - answered(keep, ()).figures["cosine"],
            lambda keep: answered(keep, self.trial.options.budgets).broken is None,
            self.out_of_time,
            lambda said: self.trial.progress(f"{name}: {said}"),
            most,
        )

    def _best_way(self) -> str:
        """Of how the recipe can be made, what is nearest on calibration feeds."""
        name, ways = self.name, self.recipe.ways
        if len(ways) == 1:
            return ways[0]
        if ways not in self.best:
            nearness = {}
            for way in ways:
                self.trial.progress(f"{name}: {way}")
                nearness[way] = self.trial.rehearse(self.attempt(name, (), way), ()).figures["cosine"]
                if self.out_of_time():
                    break
            self.best[ways] = max(nearness, key=nearness.__getitem__)
        return self.best[ways]
