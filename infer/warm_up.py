"""What a session runs before its first caller comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infer.artifact import Artifact
from infer.errors import ArtifactError, FeedError, InferError, InputError
from infer.feeds import BATCH, example_feeds, resized
from infer.plan import Plan
from infer.signature import Array
from infer.tasks import Run


def warm_up(artifact: Artifact, plan: Plan, run: Run, wish: bool | Sequence[Mapping[str, int]]) -> None:
    """One golden point, and its rows again for where the plan is another; or example feeds at each of the
    sizes that are wished for. Raises `InputError` for sizes that the model cannot take, `ArtifactError`,
    and what `run` raises."""
    signature = artifact.manifest.signature
    if wish is True:
        for name, feeds, _ in artifact.golden():
            run_golden(artifact, run, name, feeds)
            if plan.larger:
                run(resized(signature, feeds, {BATCH: 1}))
                run(resized(signature, feeds, {BATCH: plan.larger.rows_from}))
            break
    elif wish is not False:
        for sizes in _checked_sizes(wish):
            try:
                run(resized(signature, example_feeds(artifact), sizes))
            except InferError as error:
                raise InputError(f"cannot warm up at {dict(sizes)}: {error}") from error


def run_golden(artifact: Artifact, run: Run, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs for the golden point `name`. Raises `ArtifactError` if its feeds do not fit."""
    try:
        return run(feeds)
    except FeedError as error:
        raise ArtifactError(
            f"the golden point '{name}' of '{artifact.path}' does not fit its graph: {error}; convert the"
            f" model again"
        ) from error


def _checked_sizes(wish: Sequence[Mapping[str, int]]) -> Sequence[Mapping[str, int]]:
    """What types alone say, for callers who have none."""
    if not isinstance(wish, Sequence) or not all(
        isinstance(sizes, Mapping) and all(type(size) is int for size in sizes.values()) for sizes in wish
    ):
        raise InputError(
            f"warm_up must be True, False or a list of sizes such as [{{'batch': 8}}], but is {wish!r:.60}"
        )
    return wish
