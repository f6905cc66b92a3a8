"""The models that are served, by name and version: loaded when needed, closed when memory is."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from infer.artifact import Artifact
from infer.errors import InferError, InputError
from infer.live import Version, opened_beside
from infer.machine import this_machine
from infer.options import BatchOptions, PlanOptions, SessionOptions, ShadowOptions
from infer.plan import Plan
from infer.planner import make_plan
from infer.server.memory import MemoryBudget, own_bytes
from infer.server.options import ServerOptions
from infer.session import open_artifact, open_session

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_RETRY_S = 10.0
_log = logging.getLogger("infer.server")


class UnknownModelError(InferError):
    """There is no model of that name, or no such version of it."""


class UnavailableError(InferError):
    """A model cannot answer now: it could not be loaded, or the server stops."""


class Model:
    """One version of a model, as the command line counts them. Threads may share it.

    Attributes:
        artifact, plan: what is run, and how.
        waiting: requests that wait or run; it belongs to the event loop alone.
    """

    def __init__(
        self,
        name: str,
        version: str,
        path: Path,
        plan_options: PlanOptions,
        session_options: SessionOptions,
    ) -> None:
        """Read the manifest at `path`. Raises `ArtifactError`, and what planning raises."""
        self.name, self.version = name, version
        self._path, self._plan_options, self._options = path, plan_options, session_options
        self.artifact = self._found()
        if isinstance(session_options.warm_up, Sequence):
            dims = set(self.artifact.manifest.signature.dims)
            sizes = [each for each in session_options.warm_up if each.keys() <= dims]
            self._options = replace(session_options, warm_up=sizes or True)
        self.plan: Plan = make_plan(self.artifact.manifest, this_machine(), plan_options)
        self.waiting = 0
        self._lock = threading.Lock()
        self._current: Version | None = None
        self._last_use = 0.0
        self._loading = False
        self._failed_at: float | None = None
        self._loaded_bytes = 0

    @property
    def weights_bytes(self) -> int:
        """What its weights take on the disk, and so at least in memory."""
        return self._bytes_of(self.artifact, self.plan)

    @property
    def memory_bytes(self) -> int:
        """What it takes in memory: what loading and warming up took, once it was loaded."""
        return max(self.weights_bytes, self._loaded_bytes)

    @property
    def answering(self) -> Plan:
        """The plan, or the reference's if a shadow check made the session fall back."""
        version = self._current
        return self.plan if version is None else version.session.plan

    @property
    def state(self) -> str:
        """In the words of Triton's repository index."""
        if self._current is not None:
            return "READY"
        if self._loading:
            return "LOADING"
        return "UNLOADED" if self._failed_at is None else "UNAVAILABLE"

    @property
    def last_use(self) -> float:
        return self._last_use

    def hold(self, *, use: bool = True) -> Version | None:
        """What serves now, which stays open until its `leave`; None if the model is not loaded. A look that
        is no `use` does not keep it from being closed for others later."""
        with self._lock:
            if self._current is not None:
                self._current.uses.append(None)
                self._last_use = time.monotonic() if use else self._last_use
            return self._current

    def load(self) -> None:
        """Open and warm up. What has failed is not tried again for a while. Raises `UnavailableError`."""
        if self._current is not None:
            return
        if self._failed_at is not None and time.monotonic() < self._failed_at + _RETRY_S:
            raise UnavailableError(
                f"the model '{self.name}' could not be loaded; the server's log says why"
            )
        self._loading = True
        start, before = time.monotonic(), own_bytes()
        try:
            session = open_session(self.artifact, self._plan_options, self._options)
            try:
                session.batcher  # noqa: B018 -- the first request shall not wait until it is made
            except BaseException:
                session.close()
                raise
        except Exception as error:
            self._failed_at = time.monotonic()
            _log.error("model %s version %s cannot be loaded: %s", self.name, self.version, error)
            raise UnavailableError(
                f"the model '{self.name}' could not be loaded; the server's log says why"
            ) from error
        finally:
            self._loading = False
        self._failed_at, self._loaded_bytes = None, own_bytes() - before
        with self._lock:
            self._current, self._last_use = Version(session), time.monotonic()
        _log.info(
            "model %s version %s is ready after %.2f s", self.name, self.version, self._last_use - start
        )

    def reload(self, make_room: Callable[[int], None]) -> tuple[str, Version | None]:
        """Serve what is at its path now; "unchanged", "swapped", or "kept" if it cannot take the place of
        what was there, which then goes on serving. Also what was replaced, of which `retire` must be
        called: calls under way end where they began.

        A loaded one is proved beside what serves, after `make_room` has found place for its weights.
        """
        try:
            artifact = self._found()
            if _stamp(artifact) == _stamp(self.artifact):
                return "unchanged", None
            plan = make_plan(artifact.manifest, this_machine(), self._plan_options)
            make_room(self._bytes_of(artifact, plan))
            old, before = self.hold(), own_bytes()
            try:
                new = opened_beside(old.session, artifact) if old else None
            finally:
                if old:
                    old.leave()
        except Exception as error:
            _log.error("model %s version %s stays as it is: %s", self.name, self.version, error)
            return "kept", None
        with self._lock:
            old, self._current = self._current, Version(new) if new else None
            self.artifact, self.plan, self._failed_at = artifact, plan, None
            self._loaded_bytes = own_bytes() - before if new else 0
        _log.info("model %s version %s is now %s", self.name, self.version, artifact.location)
        return "swapped", old

    def unload(self, *, idle_only: bool) -> bool:
        """Close the session; False if it was in use and only an idle one may be closed."""
        with self._lock:
            if idle_only and self._current is not None and self._current.uses:
                return False
            version, self._current = self._current, None
        if version is not None:
            version.session.close()
        return True

    def _bytes_of(self, artifact: Artifact, plan: Plan) -> int:
        """The weights of what answers, and of the reference if answers are checked by it."""
        sizes = {variant.name: variant.size_bytes for variant in artifact.manifest.variants}
        reference = artifact.manifest.variants[0].name
        names = set(plan.variants)
        checked = [reference] if self._options.shadow and names != {reference} else []
        return sum(sizes[name] for name in (*names, *checked))

    def _found(self) -> Artifact:
        """What is at its path now, bound to where a link leads, so that another one may take the link."""
        return open_artifact(self._path.resolve())


class Models:
    """All of them, in the order of the command line; `lazy` ones are loaded when they are asked for."""

    def __init__(self, paths: Sequence[Path], options: ServerOptions) -> None:
        """Read the manifests. Artifacts of one name (see `named`) are its versions, 1, 2, …; the last is
        the default.

        Raises `ArtifactError`, and what planning raises; `InputError` for a name that has no place in a
        URL, a model that is larger than the memory budget, or dims to warm up that no model has.
        """
        cores = this_machine().cores
        plan_options = PlanOptions(
            spinning=options.spinning,
            streams=options.streams,
            prepacking=False if options.share_weights else None,
            num_threads=None if options.workers == 1 else max(1, cores // options.workers),
        )
        session_options = SessionOptions(
            batching=BatchOptions(max_waiting=options.max_waiting),
            shadow=None if options.shadow is None else ShadowOptions(share=options.shadow),
            untrusted=options.untrusted,
            max_feed_bytes=options.max_feed_bytes,
            warm_up=options.warm_up or True,
        )
        self._budget = MemoryBudget(options.memory_budget_bytes)
        self.lazy = options.lazy or options.memory_budget_bytes is not None
        self._loading = threading.Lock()
        self._closed = False
        self._retiring: list[threading.Thread] = []
        self._versions: dict[str, dict[str, Model]] = {}
        for argument in paths:
            name, path = named(argument)
            versions = self._versions.setdefault(name, {})
            version = str(len(versions) + 1)
            model = Model(name, version, path, plan_options, session_options)
            self._budget.check(str(path), model.weights_bytes)
            versions[version] = model
        for sizes in options.warm_up:
            self._check_dims(sizes)

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._versions.values() for model in versions.values())

    def get(self, name: str, version: str | None = None) -> Model:
        """A model, in its newest version by default. Raises `UnknownModelError`."""
        versions = self._versions.get(name)
        if versions is None:
            raise UnknownModelError(
                f"there is no model {name!r:.140}; GET /v2/models lists those that there are"
            )
        if version is None:
            return next(reversed(versions.values()))
        if version not in versions:
            raise UnknownModelError(
                f"the model '{name}' has no version {version!r:.40}; it has {', '.join(versions)}"
            )
        return versions[version]

    def versions(self, name: str) -> list[str]:
        """The versions of a model. Raises `UnknownModelError`."""
        return list(self._versions[self.get(name).name])

    @property
    def ready(self) -> bool:
        """Whether all models that are to be loaded at the start are there. What is loaded when it is asked
        for is its callers' concern: one that fails would keep the others from being asked."""
        return not self._closed and (self.lazy or all(map(self.can_answer, self)))

    def can_answer(self, model: Model) -> bool:
        """Whether a request to `model` may be sent now."""
        return model.state in (("READY", "LOADING", "UNLOADED") if self.lazy else ("READY",))

    def load_at_start(self) -> None:
        """Load all models, unless that is to wait for their requests. Raises `UnavailableError`."""
        if not self.lazy:
            for model in self:
                self._load(model)

    def hold(self, model: Model) -> Version:
        """What serves of `model`, which is loaded first if need be, and stays open until its `leave`.

        Raises `UnavailableError`, and `OverloadedError` if others that are in use take the memory.
        """
        while (version := model.hold()) is None:  # again, if it was closed for another in the meantime
            self._load(model)
        return version

    def reload(self) -> list[tuple[Model, str]]:
        """Take up artifacts that changed, one after another; see `Model.reload`."""
        found = []
        for model in self:
            with self._loading:
                if self._closed:
                    break
                outcome, old = model.reload(partial(self._find_room, model))
                if outcome == "swapped":
                    self._budget.settle(model, self)
            found.append((model, outcome))
            if old is not None:  # others may load, and the server may stop, while its last calls end
                thread = threading.Thread(target=old.retire, name="infer-retire")
                self._retiring = [each for each in self._retiring if each.is_alive()] + [thread]
                thread.start()
        return found

    def close(self) -> None:
        """Close all sessions, after the runs under way."""
        self._closed = True
        with self._loading:
            for model in self:
                model.unload(idle_only=False)
        for thread in self._retiring:
            thread.join()

    def _load(self, model: Model) -> None:
        with self._loading:
            if self._closed:
                raise UnavailableError("the server is stopping; ask another one")
            if model.state != "READY":
                self._budget.make_room(model, self, model.weights_bytes, model.memory_bytes)
                model.load()
                self._budget.settle(model, self)

    def _find_room(self, model: Model, weights_bytes: int) -> None:
        """For another release of `model`, which is loaded beside it if it is loaded."""
        self._budget.check(model.name, weights_bytes)
        if model.state == "READY":
            self._budget.make_room(model, self, weights_bytes, weights_bytes)

    def _check_dims(self, sizes: Mapping[str, int]) -> None:
        dims = {model.name: model.artifact.manifest.signature.dims for model in self}
        if not any(sizes.keys() <= set(each) for each in dims.values()):
            there = "; ".join(f"'{name}' has {', '.join(each) or 'none'}" for name, each in dims.items())
            raise InputError(f"no model has the dims {', '.join(sizes)}, to be warmed up so: {there}")


def named(argument: Path) -> tuple[str, Path]:
    """A model's name and path, of NAME=PATH or of a path alone. Raises `InputError`."""
    name, given, path = str(argument).partition("=")
    if given and _NAME.fullmatch(name) and not argument.exists():
        return _checked(name, argument), Path(path)
    return model_name(argument), argument


def model_name(path: Path) -> str:
    """What the artifact at `path` is called in URLs, if nothing else is said. Raises `InputError`."""
    name = path.resolve().name
    for suffix in (".infer", ".onnx"):
        name = name.removesuffix(suffix)
    return _checked(name, path)


def _checked(name: str, path: Path) -> str:
    if not _NAME.fullmatch(name) or not name.strip("."):
        raise InputError(
            f"'{path}' cannot be served as {name!r:.140}: a model's name may have letters, digits, '.', '_'"
            f" and '-', 128 at most; say what it is called: NAME={path}"
        )
    return name


def _stamp(artifact: Artifact) -> object:
    """What differs if the artifact is another one: its digest, or a plain graph's size and time."""
    if artifact.manifest_sha256 is not None:
        return artifact.manifest_sha256
    found = artifact.location.stat()
    return artifact.location, found.st_size, found.st_mtime_ns
