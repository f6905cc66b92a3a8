"""What a session runs before its first caller comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infer.artifact import Artifact
from infer.errors import ArtifactError, FeedError, InferError, InputError
from infer.feeds import batch_dim, example_feeds, example_point, resized
from infer.plan import Plan
from infer.signature import Array, Signature
from infer.tasks import Run

_MOST_BYTES = 2**28
"""Feeds for many rows that have more of them are not made only to warm up."""


def warm_up(artifact: Artifact, plan: Plan, run: Run, wish: bool | Sequence[Mapping[str, int]]) -> None:
    """A row of the example, which requests are likely to be like, and many where the plan for these is
    another, if the artifact has golden points; or example feeds at each of the sizes that are wished for.
    Raises `InputError` for sizes that the model cannot take, `ArtifactError`, and what `run` raises."""
    signature = artifact.manifest.signature
    if wish is True:
        point = example_point(artifact.manifest)
        if point is None:
            return
        feeds = example_feeds(artifact)
        if not _run_with(signature, run, feeds, 1):
            run_golden(artifact, run, point.name, feeds)
        if plan.larger:
            _run_with(signature, run, feeds, plan.larger.rows_from)
    elif wish is not False:
        for sizes in _checked_sizes(wish):
            try:
                run(resized(signature, example_feeds(artifact), sizes))
            except InferError as error:
                raise InputError(f"cannot warm up at {dict(sizes)}: {error}") from error


def _run_with(signature: Signature, run: Run, feeds: Mapping[str, Array], rows: int) -> bool:
    """Whether so many rows could be run: not if there are none, they are too many to be worth it, or it is
    another number than the session takes."""
    dim = batch_dim(signature)
    if dim is None or rows * sum(array.nbytes for array in feeds.values()) > _MOST_BYTES:
        return False
    try:
        run(resized(signature, feeds, {dim: rows}))
    except FeedError:
        return False
    return True


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
