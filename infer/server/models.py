"""The models that are served, by name and version: loaded when needed, closed when memory is."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from infer.artifact import Artifact
from infer.errors import InferError, InputError, OverloadedError
from infer.machine import this_machine
from infer.options import BatchOptions, PlanOptions, SessionOptions
from infer.plan import Plan
from infer.planner import make_plan
from infer.server.options import ServerOptions
from infer.session import Session, open_artifact, open_session

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_RETRY_S = 10.0
_log = logging.getLogger("infer.server")


class UnknownModelError(InferError):
    """There is no model of that name, or no such version of it."""


class UnavailableError(InferError):
    """A model cannot answer now: it could not be loaded, or the server stops."""


class Model:
    """One version of a model. Threads may share it.

    Attributes:
        artifact, plan: what is run, and how.
        weights_bytes: what its weights take on the disk, and so at least in memory.
        waiting: requests that wait or run; it belongs to the event loop alone.
    """

    def __init__(
        self,
        name: str,
        version: str,
        artifact: Artifact,
        plan_options: PlanOptions,
        session_options: SessionOptions,
    ) -> None:
        self.name, self.version, self.artifact = name, version, artifact
        self.plan: Plan = make_plan(artifact.manifest, this_machine(), plan_options)
        variant = next(v for v in artifact.manifest.variants if v.name == self.plan.variant)
        self.weights_bytes = variant.size_bytes
        self.waiting = 0
        self._options = session_options
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._held = 0
        self._last_use = 0.0
        self._loading = False
        self._failed_at: float | None = None

    @property
    def state(self) -> str:
        """In the words of Triton's repository index."""
        if self._session is not None:
            return "READY"
        if self._loading:
            return "LOADING"
        return "UNLOADED" if self._failed_at is None else "UNAVAILABLE"

    @property
    def last_use(self) -> float:
        return self._last_use

    def hold(self) -> Session | None:
        """The session, which stays open until `leave`; None if the model is not loaded."""
        with self._lock:
            if self._session is not None:
                self._held += 1
                self._last_use = time.monotonic()
            return self._session

    def leave(self) -> None:
        """Say that what `hold` gave is not used any more."""
        with self._lock:
            self._held -= 1

    def load(self) -> None:
        """Open and warm up. What has failed is not tried again for a while. Raises `UnavailableError`."""
        if self._session is not None:
            return
        if self._failed_at is not None and time.monotonic() < self._failed_at + _RETRY_S:
            raise UnavailableError(
                f"the model '{self.name}' could not be loaded; the server's log says why"
            )
        self._loading = True
        start = time.monotonic()
        try:
            session = open_session(self.artifact, plan=self.plan, options=self._options)
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
        self._failed_at = None
        with self._lock:
            self._session, self._last_use = session, time.monotonic()
        _log.info(
            "model %s version %s is ready after %.2f s", self.name, self.version, self._last_use - start
        )

    def unload(self, *, idle_only: bool) -> bool:
        """Close the session; False if it was in use and only an idle one may be closed."""
        with self._lock:
            if idle_only and self._held:
                return False
            session, self._session = self._session, None
        if session is not None:
            session.close()
        return True


class Models:
    """All of them, in the order of the command line; `lazy` ones are loaded when they are asked for."""

    def __init__(self, paths: Sequence[Path], options: ServerOptions) -> None:
        """Read the manifests. Artifacts of one name are its versions, 1, 2, …; the last is the default.

        Raises `ArtifactError`, and what planning raises; `InputError` for a name that has no place in a
        URL, or a model that is larger than the memory budget.
        """
        cores = this_machine().cores
        plan_options = PlanOptions(
            spinning=options.spinning,
            prepacking=False if options.share_weights else None,
            num_threads=None if options.workers == 1 else max(1, cores // options.workers),
        )
        session_options = SessionOptions(batching=BatchOptions(max_waiting=options.max_waiting))
        self._budget_bytes = options.memory_budget_bytes
        self.lazy = options.lazy or self._budget_bytes is not None
        self._loading = threading.Lock()
        self._closed = False
        self._versions: dict[str, dict[str, Model]] = {}
        for path in paths:
            versions = self._versions.setdefault(model_name(path), {})
            version = str(len(versions) + 1)
            model = Model(model_name(path), version, open_artifact(path), plan_options, session_options)
            if self._budget_bytes is not None and model.weights_bytes > self._budget_bytes:
                raise InputError(
                    f"the weights of '{path}' have {model.weights_bytes} bytes, more than the memory budget"
                    f" of {self._budget_bytes}"
                )
            versions[version] = model

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
        """Whether all models that are to be loaded at the start are there, and none has failed."""
        return not self._closed and all(map(self.can_answer, self))

    def can_answer(self, model: Model) -> bool:
        """Whether a request to `model` may be sent now."""
        return model.state in (("READY", "LOADING", "UNLOADED") if self.lazy else ("READY",))

    def load_at_start(self) -> None:
        """Load all models, unless that is to wait for their requests. Raises `UnavailableError`."""
        if not self.lazy:
            for model in self:
                self._load(model)

    def hold(self, model: Model) -> Session:
        """The session of `model`, which is loaded first if need be, and stays open until `model.leave`.

        Raises `UnavailableError`, and `OverloadedError` if others that are in use take the memory.
        """
        while (session := model.hold()) is None:  # again, if it was closed for another in the meantime
            self._load(model)
        return session

    def close(self) -> None:
        """Close all sessions, after the runs under way."""
        self._closed = True
        with self._loading:
            for model in self:
                model.unload(idle_only=False)

    def _load(self, model: Model) -> None:
        with self._loading:
            if self._closed:
                raise UnavailableError("the server is stopping; ask another one")
            if model.state != "READY":
                self._make_room(model)
                model.load()

    def _make_room(self, model: Model) -> None:
        if self._budget_bytes is None:
            return
        loaded = sorted((other for other in self if other.state == "READY"), key=lambda m: m.last_use)
        for other in loaded:
            taken = sum(m.weights_bytes for m in self if m.state == "READY") + model.weights_bytes
            if taken <= self._budget_bytes:
                return
            if other.unload(idle_only=True):
                _log.info("model %s version %s makes room for %s", other.name, other.version, model.name)
        if (
            sum(m.weights_bytes for m in self if m.state == "READY") + model.weights_bytes
            > self._budget_bytes
        ):
            raise OverloadedError(
                f"there is no room for the model '{model.name}' beside those in use; try again later"
            )


def model_name(path: Path) -> str:
    """What the artifact at `path` is called in URLs. Raises `InputError`."""
    name = path.resolve().name
    for suffix in (".infer", ".onnx"):
        name = name.removesuffix(suffix)
    if not _NAME.fullmatch(name) or not name.strip("."):
        raise InputError(
            f"'{path}' cannot be served as {name!r:.140}: a model's name may have letters, digits, '.', '_'"
            f" and '-', 128 at most; rename the artifact"
        )
    return name
