"""What is measured: anything that maps feeds to outputs, with a name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infer.errors import InferError
from infer.feeds import Feeds
from infer.measure.queries import Call, Query, repeated
from infer.options import PlanOptions, SessionOptions
from infer.parity import TOLERANCES, Tolerance, compare
from infer.session import Session, open_artifact, open_session
from infer.signature import Array, Signature

Run = Callable[[Mapping[str, Array]], dict[str, Array]]


class Candidate(Protocol):
    """Anything that maps feeds to outputs."""

    @property
    def name(self) -> str: ...

    @property
    def described(self) -> str:
        """What runs, and on what."""
        ...

    @property
    def signature(self) -> Signature: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for `feeds`, by name. Raises `InferError`."""
        ...

    def query(self, feeds: Feeds, repeat: int = 1) -> Query:
        """Asking with `feeds`, `repeat` times in a row, as one query."""
        ...


@dataclass(frozen=True)
class Local:
    """A candidate in this process; `session` and `path` are its own, if it is an artifact or a graph."""

    name: str
    described: str
    signature: Signature
    ask: Run
    session: Session | None = None
    path: Path | None = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self.ask(feeds)

    def query(self, feeds: Feeds, repeat: int = 1) -> Query:
        run = self.ask
        return Call(repeated(lambda: run(feeds), repeat))


@contextmanager
def opened(
    path: Path,
    options: PlanOptions,
    name: str | None = None,
    session_options: SessionOptions = SessionOptions(),
) -> Iterator[Local]:
    """An artifact, or a plain `.onnx` file, in a session. Raises as `infer.load` does."""
    artifact = open_artifact(path)
    with open_session(artifact, options, session_options) as session:
        yield Local(
            name or path.name,
            session.plan.summary,
            session.signature,
            session.run,
            session,
            path,
        )


def difference(
    expected: Mapping[str, Array],
    found: Mapping[str, Array],
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
) -> str | None:
    """The first difference between two candidates' answers beyond `tolerances`, or None.

    Outputs are matched by name, or by place where no name is the same.
    """
    if not set(found) & set(expected) and len(found) == len(expected):
        found = dict(zip(expected, found.values(), strict=True))
    differences = compare(expected, found, tolerances)
    return next((str(difference) for difference in differences if not difference.within), None)


def disagreement(
    first: Candidate, other: Candidate, feeds: Feeds, tolerances: Mapping[str, Tolerance] = TOLERANCES
) -> str | None:
    """Why `other` is not to be timed beside `first`: it fails, or answers otherwise; None if they agree."""
    try:
        found = other.run(feeds)
    except InferError as error:
        return str(error)
    return difference(first.run(feeds), found, tolerances)


def names_of(paths: Sequence[str]) -> list[str]:
    """Short names that tell candidates apart: the file's, or the whole text where two are alike."""
    short = [Path(text).name if "/" in text else text for text in paths]
    return [text if short.count(name) > 1 else name for text, name in zip(paths, short, strict=True)]
