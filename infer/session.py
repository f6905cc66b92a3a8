"""Session: an artifact opened on this machine, ready to answer. `load` makes one."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from infer.artifact import Artifact
from infer.backends import Executable, Switch
from infer.bare_graph import artifact_of_graph
from infer.errors import DeadlineError, FeedError, InferError, SessionClosedError
from infer.executables import prepare
from infer.guard import Feeds, Guard
from infer.huge_pages import HugePages
from infer.integrity import Verification, graphs_beside
from infer.machine import this_machine
from infer.manifest import Variant
from infer.options import BatchOptions, LoadLimits, PlanOptions, SessionOptions, ShadowOptions
from infer.parity import TOLERANCES
from infer.plan import Plan
from infer.planner import make_plan
from infer.recipe import Recipe, recipe_of
from infer.shadow import Shadow
from infer.signature import Array, Signature
from infer.structure import rebuild
from infer.tasks import PaddedTask, Run, Task, load_task
from infer.warm_up import warm_up

if TYPE_CHECKING:
    from concurrent.futures import Future

    from infer.batching import Batcher


def load(
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
) -> Session:
    """Open the artifact, or the plain `.onnx` file, at `path`.

    The arguments are the fields of `PlanOptions` and `SessionOptions`. Raises `ArtifactError`,
    `DeviceError`, `BackendError`, `MissingPackageError`, or `InputError` if the task cannot do without its
    own function.
    """
    return open_session(
        open_artifact(path),
        PlanOptions(
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
        ),
        SessionOptions(
            verify=verify,
            warm_up=warm_up,
            refuse_nan=refuse_nan,
            max_feed_bytes=max_feed_bytes,
            encode=encode,
            decode=decode,
            batching=batching,
            shadow=shadow,
            untrusted=untrusted,
        ),
    )


def open_artifact(path: str | os.PathLike[str]) -> Artifact:
    """The artifact at `path`; a plain `.onnx` file is taken as an artifact that proves nothing."""
    path = Path(path)
    return artifact_of_graph(path) if path.suffix.lower() == ".onnx" else Artifact.open(path)


def open_session(
    artifact: Artifact,
    plan_options: PlanOptions = PlanOptions(),
    options: SessionOptions = SessionOptions(),
    plan: Plan | None = None,
) -> Session:
    """Plan, unless there is a plan, load, check and warm up. Raises as `load` does."""
    source = plan or plan_options
    plan = plan or make_plan(artifact.manifest, this_machine(), plan_options)
    # hashing and loading each keep one core busy and let go of the interpreter
    verification = Verification(artifact, _unread(artifact, plan, options)) if options.verify else None
    pages = HugePages() if plan.gathers else None
    with ExitStack() as stack:
        try:
            files = stack.enter_context(_tried(artifact, plan, options))
            executable = prepare(files, plan)
        finally:
            if verification is not None:
                verification.result()  # damage explains a failure to load, and goes first
        session = Session(artifact, plan, executable, options, source)
        try:
            if options.shadow is not None:
                session.check_answers(options.shadow)
            if options.encode or options.decode:
                session.task  # noqa: B018 -- says now, not at the first call, that it needs its own functions
            warm_up(files, plan, session.run, options.warm_up)
        except BaseException:
            session.close()
            raise
    if pages is not None:  # nobody need wait for it
        threading.Thread(target=pages.gather, name="infer-huge-pages", daemon=True).start()
    return session


def _unread(artifact: Artifact, plan: Plan, options: SessionOptions) -> Collection[str]:
    """The files that the session will not load: graphs of others, unless one is the reference that a
    shadow asks. Of what is not trusted, nothing is looked at yet."""
    if options.shadow is not None or options.untrusted is not False:
        return ()
    return graphs_beside(artifact, plan)


def _tried(artifact: Artifact, plan: Plan, options: SessionOptions) -> AbstractContextManager[Artifact]:
    """What to load `plan` from: `artifact`, or if it is not trusted, a copy that was tried first."""
    if options.untrusted is False:
        return nullcontext(artifact)
    from infer.untrusted import tried  # starting a process takes packages that are seldom needed

    return tried(artifact, plan, options.untrusted)


def open_recipe(recipe: Recipe) -> Session:
    """Open what `recipe` says. Raises as `load`, and `ArtifactError` if the artifact is another one."""
    artifact = open_artifact(recipe.path)
    recipe.check(artifact)
    return _open_from(recipe.source, artifact, recipe.options)


def open_like(session: Session, artifact: Artifact) -> Session:
    """Open `artifact` with the wishes and options of `session`. Raises as `load`."""
    return _open_from(session.plan_source, artifact, session.options)


def _open_from(source: PlanOptions | Plan, artifact: Artifact, options: SessionOptions) -> Session:
    if isinstance(source, Plan):
        return open_session(artifact, options=options, plan=source)
    return open_session(artifact, source, options)


class Session:
    """Runs one artifact. Threads may share it; close it, or use it as a context manager.

    Attributes:
        artifact: what was opened.
        plan: how it is run here.
        plan_source: the wishes that it was made from; itself, if it was given.
        options: how the session was opened.
        signature: its inputs and outputs.
        shadow: what checks its answers against the reference's, if anything does.
    """

    def __init__(
        self,
        artifact: Artifact,
        plan: Plan,
        executable: Executable,
        options: SessionOptions = SessionOptions(),
        plan_source: PlanOptions | Plan = PlanOptions(),
    ) -> None:
        self.artifact = artifact
        self._folder = artifact.path.absolute()  # now, because a service may go to another folder
        self.plan = plan
        self.plan_source = plan_source
        self.options = options
        self.signature: Signature = artifact.manifest.signature
        self._executable = executable
        self._guard = Guard(self.signature, refuse_nan=options.refuse_nan, max_bytes=options.max_feed_bytes)
        self._output_names = tuple(spec.name for spec in self.signature.outputs)
        self.shadow: Shadow | None = None
        self._fallen_back: Executable | None = None
        self._task: Task | None = None
        self._batcher: Batcher | None = None
        self._making = threading.Lock()
        self._closed = ""  # why, once it is
        self._under_way: list[None] = []
        self._run_ended = threading.Condition()
        _SESSIONS.add(self)

    def run(self, feeds: Mapping[str, object], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs for `feeds`, by name, in arrays of the caller's own.

        `feeds` maps each input name to an array that fits its spec in `signature.inputs`;
        `outputs` names the wanted outputs, all by default. Raises `FeedError`, `BackendError`
        or `SessionClosedError`.
        """
        admitted = self._guard.admit(feeds)
        names = self._output_names if outputs is None else self.wanted(outputs)
        # one entry for each run under way; appending and popping are atomic, and cheaper than a lock
        self._under_way.append(None)
        try:
            if self._closed:
                raise SessionClosedError(self._closed)
            answer = self._executable.run(admitted, names)
            if self.shadow is not None:
                self.shadow.offer(admitted, answer)
            return answer
        finally:
            self._under_way.pop()
            if self._closed:
                with self._run_ended:
                    self._run_ended.notify_all()

    def admit(self, feeds: Mapping[str, object]) -> Feeds:
        """`feeds` as `run` would hand them on. Raises `FeedError`."""
        return self._guard.admit(feeds)

    def plan_for(self, feeds: Mapping[str, object]) -> Plan:
        """The part of the plan that answers `feeds`. Raises `FeedError`."""
        return self.plan.at(self.admit(feeds).rows)

    def wanted(self, outputs: Iterable[str] | None) -> tuple[str, ...]:
        """The names of the outputs that are asked for, all by default. Raises `FeedError`."""
        if outputs is None:
            return self._output_names
        try:
            names = (outputs,) if isinstance(outputs, str) else tuple(dict.fromkeys(outputs))
        except TypeError as error:  # no iterable, or one of things that are no names
            raise FeedError(
                f"outputs must be a list of names, but {outputs!r:.60} came; the outputs are"
                f" {', '.join(self._output_names)}"
            ) from error
        if not names:
            raise FeedError(f"no output was asked for; name some of {', '.join(self._output_names)}")
        if unknown := [name for name in names if name not in self._output_names]:
            raise FeedError(
                f"there is no output {unknown[0]!r}; the outputs are {', '.join(self._output_names)}"
            )
        return names

    def __call__(self, inputs: Any) -> Any:
        """The task's result for one input, or the list of results for a list of inputs.

        What an input and a result are is the task's to say: a path or picture and its labels,
        a text and its vector, a row and its class. Without a task, an input is a mapping of
        feeds and its result is what the model returned, nested as the model nests it. Raises
        `InputError` and what `run` raises.
        """
        return self.task(inputs)

    @property
    def task(self) -> Task:
        """The artifact's task, loaded on first use."""
        if self._task is None:
            self._task = self.task_on(self.run)
        return self._task

    def task_on(self, run: Run) -> Task:
        """Another one of the artifact's task, on `run` in place of the session's. Raises as `load_task`."""
        return load_task(self.artifact, run, self.options.encode, self.options.decode)

    def submit(self, inputs: Any, *, timeout_s: float | None = None, caller: str = "") -> Future[Any]:
        """A future of what `session(inputs)` gives, answered together with other callers' requests; see
        `infer.batching.Batcher.submit`."""
        return self.batcher.submit(inputs, timeout_s=timeout_s, caller=caller)

    async def arun(self, inputs: Any, *, timeout_s: float | None = None, caller: str = "") -> Any:
        """`submit`, awaited."""
        if self._batcher is None:
            timeout_s = await self._batcher_made(timeout_s)
        return await self.batcher.arun(inputs, timeout_s=timeout_s, caller=caller)

    async def _batcher_made(self, timeout_s: float | None) -> float | None:
        """The time that is left when it is, in another thread. Raises as `batcher`, and `DeadlineError`."""
        import asyncio  # takes as long to import as all of infer

        from infer.batching.waiting import Asked

        asked, late = Asked(timeout_s, ""), "the session was not ready in the time that the caller gave"
        try:
            await asyncio.wait_for(asyncio.to_thread(lambda: self.batcher), asked.left_s())
        except asyncio.TimeoutError as error:
            raise DeadlineError(late) from error
        if (left_s := asked.left_s()) == 0.0:
            raise DeadlineError(late)
        return left_s

    @property
    def batcher(self) -> Batcher:
        """What answers many callers together, made on first use. Raises as `load_task`, and
        `SessionClosedError`."""
        if self._batcher is None:
            with self._making:
                if self._closed:
                    raise SessionClosedError(self._closed)
                if self._batcher is None:
                    self._batcher = self._new_batcher()
        return self._batcher

    def _new_batcher(self) -> Batcher:
        from infer.batching import Batcher
        from infer.batching.proof import proved_layout

        padding = self.task.padding if isinstance(self.task, PaddedTask) else None
        layout = proved_layout(self.artifact, self.plan, padding, self.admit, self.run)
        # a plan whose threads spin would slow the other's runs down
        streams = min(part.streams for part in self.plan.parts)
        return Batcher(self, layout, self.options.batching, self.options.max_feed_bytes, streams=streams)

    def check_answers(self, options: ShadowOptions) -> None:
        """Check a share of the answers from now on, unless the reference itself answers. Raises
        `InputError`, and what loading the reference raises."""
        variants = {variant.name: variant for variant in self.artifact.manifest.variants}
        reference = self.artifact.manifest.variants[0]
        if self.plan.variants == (reference.name,):
            return
        plan_options = PlanOptions(device=self.plan.device, variant=reference.name)
        plan = make_plan(self.artifact.manifest, this_machine(), plan_options)

        def reference_plan(num_threads: int = 1, spinning: bool = False) -> Plan:
            own = replace(plan, num_threads=num_threads, spinning=spinning, streams=self.plan.streams)
            # threads that all sessions share stay as they are
            return plan if plan.shared_threads else own

        def answering(feeds: Feeds) -> Variant | None:
            name = self.plan.at(feeds.rows).variant
            return None if name == reference.name else variants[name]

        def fall_back() -> None:
            larger = self.plan.larger or self.plan
            own = reference_plan(max(self.plan.num_threads, larger.num_threads), self.plan.spinning)
            executable = self._opened(own)
            self._fallen_back, self._executable, self.plan = self._executable, executable, own

        parity = self.artifact.manifest.parity
        tolerances = parity.tolerances if parity else TOLERANCES
        self.shadow = Shadow(
            answering, tolerances, lambda: self._opened(reference_plan()), fall_back, options
        )

    def _opened(self, plan: Plan) -> Executable:
        """The artifact opened once more, as `plan` says."""
        with _tried(self.artifact, plan, self.options) as files:
            return prepare(files, plan)

    def watched(self, switch: Switch) -> Session:
        """Another session on the same loaded graph, of whose runs `switch` is told; see
        `infer.backends.Executable.watched`. It ends when this one is closed."""
        watched = self._executable.watched(switch)
        return Session(self.artifact, self.plan, watched, self.options, self.plan_source)

    def prepare_like(self, other: Session) -> None:
        """Make what `other` made when it was first asked, so that callers who come over from it need not
        wait for that."""
        if other._task is not None:
            self.task  # noqa: B018
        if other._batcher is not None:
            self.batcher  # noqa: B018

    def rebuild(self, outputs: Mapping[str, Array]) -> Any:
        """`outputs` of `run` in the model's own nesting of tuples, lists and dicts."""
        return rebuild(self.artifact.manifest.structure, outputs)

    def close(self) -> None:
        """Wait for runs under way, then give memory and threads back. Requests that wait for their turn
        fail. Safe to call again."""
        with self._making:
            if self._batcher is not None:
                self._batcher.close()
            if self.shadow is not None:
                self.shadow.close()
        with self._run_ended:
            if self._closed:
                return
            self._closed = "the session is closed; open the artifact again"
            self._run_ended.wait_for(lambda: not self._under_way)
            self._executable.close()
            if self._fallen_back is not None:
                self._fallen_back.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def recipe(self) -> Recipe:
        """What opens it again in another process. Raises as `recipe_of`, and `SessionClosedError`."""
        if self._closed:
            raise SessionClosedError(self._closed)
        return recipe_of(replace(self.artifact, path=self._folder), self.plan_source, self.options)

    def __reduce__(self) -> tuple[Callable[[Recipe], Session], tuple[Recipe]]:
        return open_recipe, (self.recipe(),)

    def __copy__(self) -> NoReturn:
        raise InferError(
            f"{self!r} owns memory and threads, so it is not copied; threads can share it, and"
            f" infer.load('{self.artifact.location}') opens another"
        )

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.plan.device
        return f"<Session {self.artifact.manifest.name} ({state})>"


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Threads do not come along into a forked process, and a backend's would be waited for forever: by a
    run, and by the backend's destructors when the process ends."""
    import ctypes

    for session in _SESSIONS:
        # one reference too many: whatever else Python holds, it lets go of at its end
        for held in (session._executable, session._fallen_back, session.shadow):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        session._making = threading.Lock()
        session.shadow = None  # its thread is gone, and may have held its queue
        session._run_ended = threading.Condition()  # its lock may have been held by a thread that is gone
        session._closed = (
            f"this session was opened in process {os.getppid()}, and its threads did not come along into"
            f" the forked process {os.getpid()}; call infer.load after the fork"
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
