"""A Ray Serve application: replicas that hold sessions, scaled on what waits, and updated in place."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import ray

from infer.errors import InputError, SessionClosedError, missing_package
from infer.server.ray.http import UnknownModelError, error_response, read_inputs, results_response
from infer.server.ray.models import Model, open_model
from infer.server.ray.options import ReplicaOptions, options_of
from infer.session import Session

try:
    from ray import serve
    from starlette.requests import Request
except ImportError as _error:
    raise missing_package("ray", "ray", _error) from _error

Paths = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]
"""An artifact's path; or model id → path, where there are several. Every node must have them there."""

_LONE = ""
"""The id of the only model, which nobody names."""

_MODEL_ID = re.compile("[A-Za-z0-9._-]{1,128}")
_log = logging.getLogger("ray.serve")


def application(paths: Paths, options: ReplicaOptions = ReplicaOptions()) -> Any:
    """A `ray.serve.Application` for `serve.run`: its deployment is called "infer".

    A handle's `remote(inputs)` is answered as `session(inputs)`, HTTP as `infer.server.ray.http` says. With
    several models, requests name theirs by Ray's own means: `handle.options(multiplexed_model_id=…)`, or
    the header `serve_multiplexed_model_id`. Raises `InputError`.
    """
    if isinstance(paths, Mapping):
        config: dict[str, Any] = {"paths": {name: _absolute(path) for name, path in paths.items()}}
    else:
        config = {"path": _absolute(paths)}
    return _bound(config, options)


def from_config(config: dict[str, Any]) -> Any:
    """`application` for a Serve config file, as `import_path: infer.server.ray:from_config`. Its `args` are
    the fields of `ReplicaOptions`; `path` or `paths` may be among them, but stand better in the
    deployment's `user_config`, of which changes reach replicas as they run; others restart them. Raises
    `InputError`."""
    places = {key: value for key, value in config.items() if key in ("path", "paths")}
    return _bound(places, options_of({key: config[key] for key in config if key not in places}))


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(Path(path).absolute())  # links stay: where they lead may change with the version


def _bound(config: dict[str, Any], options: ReplicaOptions) -> Any:
    if config:
        paths_of(config)  # says now what is wrong with it
    most = options.max_replicas or options.min_replicas
    scale: dict[str, Any] = {"num_replicas": options.min_replicas}
    if most > options.min_replicas:
        scale = {
            "autoscaling_config": {
                "min_replicas": options.min_replicas,
                "max_replicas": most,
                "target_ongoing_requests": options.target_ongoing_requests,
            }
        }
    deployment = serve.deployment(
        name="infer",
        user_config=config or None,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        max_ongoing_requests=options.max_ongoing_requests,
        max_queued_requests=options.max_queued_requests,
        backpressure_config={"retry_after_s": 1},
        health_check_period_s=options.health_check_period_s,
        graceful_shutdown_timeout_s=options.drain_s,
        max_surge_percent=options.surge_percent,
        **scale,
    )
    return deployment(Replica).bind(options)


def paths_of(config: Any) -> dict[str, str]:
    """Model id → path, of a `user_config`. Raises `InputError`."""
    if isinstance(config, dict) and set(config) == {"path"} and isinstance(config["path"], str):
        return {_LONE: config["path"]}
    paths = config.get("paths") if isinstance(config, dict) and len(config) == 1 else None
    if not isinstance(paths, dict) or not paths or not all(isinstance(p, str) for p in paths.values()):
        raise InputError(
            f'user_config must be {{"path": PATH}} or {{"paths": {{MODEL: PATH}}}}, but is {config!r:.120}'
        )
    for name in paths:
        if not isinstance(name, str) or not _MODEL_ID.fullmatch(name):
            raise InputError(
                f"a model id has 1 to 128 of the characters A-Z a-z 0-9 . _ -, but one is {name!r:.60}"
            )
    return paths


class Replica:
    """One process of the deployment. Ray calls it from one event loop."""

    def __init__(self, options: ReplicaOptions) -> None:
        self._options = options
        self._paths: dict[str, str] = {}
        self._refused: dict[str, str] = {}
        self._lone: Model | None = None
        self._models: WeakValueDictionary[str, Model] = WeakValueDictionary()  # those that are loaded
        self._changing = asyncio.Lock()

        async def load(model_id: str) -> Model:
            return await self._load(model_id)

        # keeps the models that were asked last, and tells Ray's router who has which
        self._loaded = serve.multiplexed(max_num_models_per_replica=options.max_models)(load)

    async def __call__(self, inputs: Any) -> Any:
        """What `session(inputs)` gives, answered together with other requests; or an HTTP response."""
        if isinstance(inputs, Request):
            return await self._answer_http(inputs)
        async with (await self._asked_model()).used() as session:
            return await self._answer(session, inputs)

    async def reconfigure(self, config: Any) -> None:
        """Let the versions that `config` names serve. One that cannot, or answers otherwise than recorded,
        is refused, and the version that it should replace goes on; `status` tells. Where there is none to
        go on, as in a new replica, this raises what `open_model` raises."""
        async with self._changing:
            try:
                paths = paths_of(config)
            except InputError as error:
                if not self._paths:
                    raise
                self._refuse(list(self._paths), error)
                return
            for model_id, path in paths.items():
                if path != self._paths.get(model_id):
                    await self._change(model_id, path)
            self._paths = {model_id: path for model_id, path in self._paths.items() if model_id in paths}
            if _LONE not in paths:
                self._lone = None

    async def check_health(self) -> None:
        """Ask each loaded model a golden point. Raises `ParityError`, what `Session.run` raises, and
        `InputError` if no model was named at all."""
        if not self._paths:
            paths_of(None)
        for model in list(self._models.values()):
            try:
                await asyncio.to_thread(model.check)
            except SessionClosedError:
                continue  # it was let go of meanwhile

    async def status(self) -> dict[str, Any]:
        """Where this is, and of each model the path of the version that serves, the digest if it is loaded,
        and why an update was refused."""
        models = {}
        for model_id, path in self._paths.items():
            model = self._models.get(model_id)
            models[model_id] = {
                "path": path,
                "digest": model.live.artifact.manifest_sha256 if model else None,
                "refused": self._refused.get(model_id),
            }
        return {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(), "models": models}

    async def _asked_model(self) -> Model:
        model_id = serve.get_multiplexed_model_id()
        if model_id not in self._paths:
            raise UnknownModelError(
                f"there is no model {model_id!r:.130} here; there are {', '.join(self._paths)}"
                if _LONE not in self._paths
                else f"there is one model here, so none is named, but {model_id!r:.130} was"
            )
        if self._lone is not None:
            return self._lone
        model: Model = await self._loaded(model_id)
        return model

    async def _answer(self, session: Session, inputs: Any) -> Any:
        return await session.arun(inputs, timeout_s=self._options.timeout_s)

    async def _answer_http(self, request: Request) -> Any:
        try:
            async with (await self._asked_model()).used() as session:
                spec = session.artifact.manifest.task
                inputs = await read_inputs(
                    request, spec.name if spec else "tensors", self._options.max_body_bytes
                )
                results = await self._answer(session, inputs) if inputs else []
                return results_response([session.task.to_json(result) for result in results])
        except Exception as error:
            return error_response(error)

    async def _load(self, model_id: str) -> Model:
        async with self._changing:
            model = await self._opened(self._paths[model_id])
            self._models[model_id] = model
            return model

    async def _change(self, model_id: str, path: str) -> None:
        known = model_id in self._paths
        try:
            if model := self._models.get(model_id):
                await asyncio.to_thread(model.swap, path)
            elif known or model_id == _LONE:
                model = await self._opened(path)  # of several, those that are asked are kept
                if model_id == _LONE:
                    self._lone = self._models[model_id] = model
        except Exception as error:  # whatever it is, Ray would stop a replica that raises
            if not known:
                raise
            self._refuse([model_id], error, path)
        else:
            self._paths[model_id] = path
            self._refused.pop(model_id, None)

    def _refuse(self, model_ids: list[str], error: Exception, path: str = "user_config") -> None:
        self._refused.update(dict.fromkeys(model_ids, f"{path}: {error}"))
        _log.error("'%s' was refused, and what served goes on: %s", path, error)

    async def _opened(self, path: str) -> Model:
        return await asyncio.to_thread(open_model, path, self._options.max_ongoing_requests)
