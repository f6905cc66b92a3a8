"""LiveSession: one name for a model whose versions change while it is asked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from infer.artifact import Artifact
from infer.errors import ArtifactError, InferError, ParityError, SessionClosedError
from infer.golden import prove
from infer.options import BatchOptions, LoadLimits, ShadowOptions
from infer.plan import Plan
from infer.recipe import Recipe
from infer.session import Session, load, open_artifact, open_like, open_recipe
from infer.signature import Array, Dim, Range, Signature

if TYPE_CHECKING:
    from concurrent.futures import Future


class LiveSession:
    """Answers as a `Session` does, from the version that serves now; `swap` puts another in its place.

    Threads may share it. Each call is answered wholly by the version that served when it came.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        variant: str | None = None,
        num_threads: int | None = None,
        backend: str | None = None,
        spinning: bool | None = None,
        streams: int | None = None,
        prepacking: bool | None = None,
        huge_pages: bool | None = None,
        arena: bool | None = None,
        shrink_above_bytes: int | None = None,
        verify: bool = True,
        warm_up: bool | Sequence[Mapping[str, int]] = True,
        refuse_nan: bool = False,
        max_feed_bytes: int | None = None,
        encode: Callable[..., Any] | None = None,
        decode: Callable[..., Any] | None = None,
        batching: BatchOptions = BatchOptions(),
        shadow: ShadowOptions | None = None,
        untrusted: bool | LoadLimits = False,
    ) -> None:
        """Open the first version. The arguments, and what is raised, are those of `infer.load`; they hold
        for later versions, too."""
        self._begin(
            load(
                path,
                device=device,
                variant=variant,
                num_threads=num_threads,
                backend=backend,
                spinning=spinning,
                streams=streams,
                prepacking=prepacking,
                huge_pages=huge_pages,
                arena=arena,
                shrink_above_bytes=shrink_above_bytes,
                verify=verify,
                warm_up=warm_up,
                refuse_nan=refuse_nan,
                max_feed_bytes=max_feed_bytes,
                encode=encode,
                decode=decode,
                batching=batching,
                shadow=shadow,
                untrusted=untrusted,
            )
        )

    def _begin(self, first: Session) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._swapping = threading.Lock()
        self._retiring: list[threading.Thread] = []
        self._current = Version(first)

    def swap(self, path: str | os.PathLike[str], *, allow_change: bool = False) -> None:
        """Let the artifact at `path` serve from now on, if it answers here as it was recorded to.

        It is opened, warmed up and asked its golden points beside the version that serves, which goes on
        meanwhile, and stays if anything fails. Calls under way end where they began; then the old version
        is closed, by a thread of its own. Each version needs a folder of its own, and while both are open,
        memory for both.

        Unless `allow_change`, the new one must take all that the old one takes, and give outputs of the
        same names, dtypes, ranks and fixed sizes. An artifact without golden points is held to nothing.
        Raises what `infer.load` raises; `ArtifactError` if it does not fit, `ParityError` if it answers
        otherwise than recorded, `SessionClosedError`.
        """
        self._check_process()
        with self._swapping:
            if self._closed:
                raise SessionClosedError("the session is closed; open the artifact again")
            old = self._current
            self._current = Version(opened_beside(old.session, open_artifact(path), allow_change))
            # the last call on it may be in a thread of its own batcher, which cannot close that
            thread = threading.Thread(target=old.retire, name="infer-retire")
            self._retiring = [each for each in self._retiring if each.is_alive()] + [thread]
            thread.start()

    @contextmanager
    def hold(self) -> Iterator[Session]:
        """The version that serves now; it stays open in the block, whatever takes its place meanwhile."""
        version = self._enter()
        try:
            yield version.session
        finally:
            version.leave()

    def run(self, feeds: Mapping[str, object], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """See `Session.run`."""
        version = self._enter()
        try:
            return version.session.run(feeds, outputs)
        finally:
            version.leave()

    def __call__(self, inputs: Any) -> Any:
        """See `Session.__call__`."""
        with self.hold() as session:
            return session(inputs)

    def submit(self, inputs: Any, *, timeout_s: float | None = None, caller: str = "") -> Future[Any]:
        """See `Session.submit`."""
        version = self._enter()
        try:
            future = version.session.submit(inputs, timeout_s=timeout_s, caller=caller)
        except BaseException:
            version.leave()
            raise
        future.add_done_callback(lambda _: version.leave())
        return future

    async def arun(self, inputs: Any, *, timeout_s: float | None = None, caller: str = "") -> Any:
        """See `Session.arun`."""
        with self.hold() as session:
            return await session.arun(inputs, timeout_s=timeout_s, caller=caller)

    @property
    def artifact(self) -> Artifact:
        """What serves now."""
        return self._current.session.artifact

    @property
    def plan(self) -> Plan:
        """How it is run here."""
        return self._current.session.plan

    @property
    def signature(self) -> Signature:
        """Its inputs and outputs."""
        return self._current.session.signature

    def close(self) -> None:
        """Close the version that serves, as `Session.close` does, and wait for those that it replaced. Safe
        to call again."""
        if os.getpid() != self._pid:
            return  # threads and locks are the parent's
        with self._swapping:
            self._closed = True
            self._current.session.close()
        for thread in self._retiring:
            thread.join()

    def __enter__(self) -> LiveSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[Recipe], LiveSession], tuple[Recipe]]:
        with self.hold() as session:
            return _open_live, (session.recipe(),)

    def __copy__(self) -> NoReturn:
        raise InferError(
            f"{self!r} owns memory and threads, so it is not copied; threads can share it, and"
            f" infer.LiveSession('{self.artifact.location}') opens another"
        )

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __repr__(self) -> str:
        return f"<LiveSession of {self._current.session!r}>"

    def _enter(self) -> Version:
        """The version that serves now, of which `leave` must be called."""
        while True:
            version = self._current
            version.uses.append(None)
            if version is self._current:
                return version
            version.leave()  # it was replaced in between, and perhaps closed

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise SessionClosedError(
                f"this session was opened in process {self._pid}, and its threads did not come along into"
                f" the forked process {os.getpid()}; open it after the fork"
            )


def _open_live(recipe: Recipe) -> LiveSession:
    live = LiveSession.__new__(LiveSession)
    live._begin(open_recipe(recipe))
    return live


def opened_beside(old: Session, artifact: Artifact, allow_change: bool = False) -> Session:
    """`artifact` as another version of `old`, opened as that was; it takes what the other takes, and
    answers here as it was recorded to. Raises as `LiveSession.swap`."""
    stays = f"'{old.artifact.location}' goes on serving"
    if not allow_change and (change := _change(old.signature, artifact.manifest.signature)):
        raise ArtifactError(
            f"'{artifact.location}' cannot take the place of another version: {change}; {stays}. If callers"
            f" know of the change, pass allow_change=True"
        )
    new = open_like(old, artifact)
    try:
        wrong = [
            f"{point}: {difference}"
            for point, differences in prove(new).items()
            for difference in differences
            if not difference.within
        ]
        if wrong:
            raise ParityError(
                f"'{artifact.location}' does not answer here as it was proved to: {'; '.join(wrong[:3])};"
                f" {stays}. See: infer verify"
            )
        new.prepare_like(old)
    except BaseException:
        new.close()
        raise
    return new


class Version:
    """A session, and the calls that it is answering."""

    def __init__(self, session: Session) -> None:
        self.session = session
        # one entry for each call; appending and popping are atomic, and cheaper than a lock
        self.uses: list[None] = []
        self._retired = False
        self._left = threading.Condition()

    def leave(self) -> None:
        """A call has ended."""
        self.uses.pop()
        if self._retired:
            with self._left:
                self._left.notify_all()

    def retire(self) -> None:
        """Close the session when the last call has ended; no other may come."""
        with self._left:
            self._retired = True
            self._left.wait_for(lambda: not self.uses)
        self.session.close()


def _change(old: Signature, new: Signature) -> str:
    """What a caller of `old` would notice first in `new`, in words; "" if nothing."""
    became: dict[str, Dim] = {}  # sizes that `new` wants to be equal must have been
    for kind, before, after in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        found = {spec.name: spec for spec in after}
        for spec in before:
            other = found.pop(spec.name, None)
            if other is None:
                return f"it has no {kind} '{spec}'"
            same = (spec.dtype, len(spec.dims)) == (other.dtype, len(other.dims))
            for dim, now in zip(spec.dims, other.dims, strict=False):
                if kind == "output":
                    same &= isinstance(dim, str) or dim == now
                elif isinstance(now, int):
                    same &= dim == now
                else:
                    same &= became.setdefault(now, dim) == dim and _within(
                        _sizes(old, dim), _sizes(new, now)
                    )
            if not same:
                return f"its {kind} {_told(other.name, new)} was {_told(spec.name, old)}"
        if found:
            return f"it has another {kind}, '{next(iter(found.values()))}'"
    return ""


def _sizes(signature: Signature, dim: Dim) -> Range:
    """Those that a dim may have."""
    return Range(dim, dim) if isinstance(dim, int) else signature.limits.get(dim, Range(0))


def _within(part: Range, whole: Range) -> bool:
    return part & whole == part


def _told(name: str, signature: Signature) -> str:
    """A tensor and the limits of its dims."""
    spec = next(spec for spec in (*signature.inputs, *signature.outputs) if spec.name == name)
    limits = [f"{dim} {sizes}" for dim, sizes in signature.limits.items() if dim in spec.dims]
    return f"'{spec}'" + (f" ({', '.join(limits)})" if limits else "")
