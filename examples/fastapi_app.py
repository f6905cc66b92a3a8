"""An artifact behind FastAPI; what is said here holds for Starlette, too.

    MODEL=net.infer uvicorn fastapi_app:app

POST /answer takes a JSON object of inputs by name, as nested lists, and gives one of outputs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import infer

BATCHING = infer.BatchOptions(max_waiting=64)
TIMEOUT_S = 2.0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # no spinning: as many runs go on at once as there are threads
    with infer.LiveSession(os.environ["MODEL"], spinning=False, batching=BATCHING) as model:
        app.state.model = model
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/answer")
async def answer(feeds: dict[str, Any], request: Request) -> dict[str, Any]:
    outputs = await request.app.state.model.arun(feeds, timeout_s=TIMEOUT_S)
    return {name: array.tolist() for name, array in outputs.items()}


def refusal(error: Exception, status: int, **headers: str) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status, headers)


@app.exception_handler(infer.FeedError)
@app.exception_handler(infer.InputError)
async def wrong(request: Request, error: Exception) -> JSONResponse:
    return refusal(error, 400)


@app.exception_handler(infer.OverloadedError)
async def overloaded(request: Request, error: Exception) -> JSONResponse:
    return refusal(error, 503, **{"Retry-After": "1"})


@app.exception_handler(infer.DeadlineError)
async def late(request: Request, error: Exception) -> JSONResponse:
    return refusal(error, 504)
