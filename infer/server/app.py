"""The application: which path is answered by what."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route, Router

from infer.server import openai_api, v2
from infer.server.admission import PAGE_PATHS
from infer.server.front import Front
from infer.server.metrics import CONTENT_TYPE
from infer.server.openapi import document
from infer.server.predict import predict
from infer.server.service import Service, service

_PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob: data:;"
        " media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
}


async def page(request: Request) -> Response:
    """The page to try the models with."""
    name = request.scope["path"].removeprefix("/") or "index.html"
    return FileResponse(_PAGE / name, headers=_PAGE_HEADERS)


async def scrape(request: Request) -> Response:
    """Metrics, for Prometheus."""
    served = service(request)
    served.count()
    return Response(await served.apart(served.metrics.text, 2**20), headers={"content-type": CONTENT_TYPE})


async def openapi(request: Request) -> Response:
    """The description of the endpoints."""
    return v2.json_response(document())


def _get(path: str, endpoint: Callable[[Request], Any]) -> Route:
    return Route(path, endpoint, methods=["GET"])


def _post(path: str, endpoint: Callable[[Request], Any]) -> Route:
    return Route(path, endpoint, methods=["POST"])


_MODEL, _VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"

ROUTES = (
    _post(f"{_MODEL}/infer", v2.infer_model),
    _post("/v1/models/{model}:predict", predict),
    _get("/v2/health/live", v2.live),
    _get("/v2/health/ready", v2.ready),
    _get("/v2", v2.server_metadata),
    _get("/v2/models", v2.model_list),
    _post("/v2/repository/index", v2.model_index),
    _get(_MODEL, v2.model_metadata),
    _get(_VERSION, v2.model_metadata),
    _get(f"{_MODEL}/ready", v2.model_ready),
    _get(f"{_VERSION}/ready", v2.model_ready),
    _get(f"{_MODEL}/config", v2.model_config),
    _get(f"{_VERSION}/config", v2.model_config),
    _get(f"{_MODEL}/stats", v2.model_statistics),
    _get(f"{_VERSION}/stats", v2.model_statistics),
    _post(f"{_VERSION}/infer", v2.infer_model),
    _post("/v1/models/{model}/versions/{version}:predict", predict),
    _post("/v1/embeddings", openai_api.embeddings),
    _get("/v1/models", openai_api.models),
    _get("/v1/models/{model}", openai_api.model),
    _get("/metrics", scrape),
    _get("/openapi.json", openapi),
    *(_get(path, page) for path in PAGE_PATHS),
)
"""Path → endpoint; the first that fits answers, so those that are asked the most come first."""


def make_app(served: Service, start: Callable[[], None], stop: Callable[[], Awaitable[None]]) -> Front:
    """The ASGI application. `start` is called once it runs, `stop` in the end, both in its event loop."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        start()
        yield
        await stop()

    return Front(Router(ROUTES, redirect_slashes=False, lifespan=lifespan), served)
