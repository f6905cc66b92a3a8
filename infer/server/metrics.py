"""What Prometheus scrapes: own names with fixed labels, and those of Triton's that dashboards know."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from infer.batching import Batcher, BatchStats
from infer.errors import missing_package
from infer.server.models import Model
from infer.session import Session
from infer.shadow import Shadow, ShadowStats

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.metrics_core import Metric
    from prometheus_client.multiprocess import MultiProcessCollector
except ImportError as _error:
    raise missing_package("prometheus-client", "serve", _error) from _error

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The environment's variable that names where worker processes count together; the library reads it when it
is imported."""

OUTCOMES = ("success", "bad input", "refused", "late", "gone", "failed")

RELOADS = ("unchanged", "swapped", "kept")
CHECKS = ("checked", "off", "skipped", "failed")
"""Of a shadow check: its counters' names. What is `off` was `checked`, too."""

_RAN = {
    "runs": ("infer_runs", "Runs, of one or more rows"),
    "rows": ("infer_rows", "Rows that were run"),
    "seconds": ("infer_run_seconds", "Time of runs"),
    "waited_s": ("infer_queue_seconds", "Time that requests waited for their turn"),
    "cost": (
        "infer_run_positions",
        "Positions that were run: rows by their tokens or pixels, 1 where these are fixed",
    ),
    "padding": ("infer_padding_positions", "Those of infer_run_positions_total that were padding"),
}
"""What `BatchStats` counts → its counter's name and help."""

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LABELS = ("model", "version")

_Takes = Callable[[dict[str, str]], bool]
_ALIASES: tuple[tuple[str, str, float, _Takes, str], ...] = (
    (
        "nv_inference_request_success",
        "infer_requests_total",
        1,
        lambda labels: labels["outcome"] == "success",
        "Requests that were answered",
    ),
    (
        "nv_inference_request_failure",
        "infer_requests_total",
        1,
        lambda labels: labels["outcome"] != "success",
        "Requests that were not answered",
    ),
    ("nv_inference_count", "infer_rows_total", 1, lambda _: True, "Rows that were run"),
    ("nv_inference_exec_count", "infer_runs_total", 1, lambda _: True, "Runs, of one or more rows"),
    (
        "nv_inference_request_duration_us",
        "infer_request_seconds_sum",
        1e6,
        lambda _: True,
        "Time of requests, in microseconds",
    ),
    (
        "nv_inference_queue_duration_us",
        "infer_queue_seconds_total",
        1e6,
        lambda _: True,
        "Time that requests waited for their turn, in microseconds",
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "infer_run_seconds_total",
        1e6,
        lambda _: True,
        "Time of runs, in microseconds",
    ),
)
"""Triton's name, the sample of ours that it is the sum of, by what factor, with which labels; its help."""


class Metrics:
    """The counters of one process, or of all workers together. It belongs to the event loop's thread."""

    def __init__(self, models: Iterator[Model]) -> None:
        registry = CollectorRegistry()
        self.seconds = Histogram(
            "infer_request_seconds",
            "Time of requests, from their last byte to the answer",
            _LABELS,
            buckets=_BUCKETS,
            registry=registry,
        )
        self.requests = Counter(
            "infer_requests", "Requests, by how they ended", (*_LABELS, "outcome"), registry=registry
        )
        self.waiting = Gauge(
            "infer_requests_waiting",
            "Requests that wait or run",
            _LABELS,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.responses = Counter(
            "infer_http_responses",
            "Responses, by endpoint and status",
            ("endpoint", "status"),
            registry=registry,
        )
        self._ran = {
            field: Counter(name, documentation, _LABELS, registry=registry)
            for field, (name, documentation) in _RAN.items()
        }
        self.reloads = Counter(
            "infer_reloads",
            "Times that an artifact was looked at again, by what came of it",
            (*_LABELS, "outcome"),
            registry=registry,
        )
        self._checked = Counter(
            "infer_shadow_checks",
            "Answers that were run again on the reference, by what was found",
            (*_LABELS, "outcome"),
            registry=registry,
        )
        self._worst = Gauge(
            "infer_shadow_worst_distance",
            "The largest distance of an answer from the reference's: 1 - cosine",
            _LABELS,
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._fell_back = Gauge(
            "infer_shadow_fell_back",
            "Whether the reference answers, because too many answers were off",
            _LABELS,
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._series: dict[tuple[str, str], dict[str, Counter]] = {}
        self._seen: WeakKeyDictionary[Batcher, BatchStats] = WeakKeyDictionary()
        self._checks: WeakKeyDictionary[Shadow, ShadowStats] = WeakKeyDictionary()
        self._registry = registry
        for model in models:  # a series that begins at 0 shows its first event
            self.waiting.labels(model.name, model.version).set(0)
            for outcome in OUTCOMES:
                self.requests.labels(model.name, model.version, outcome)
            for outcome in RELOADS:
                self.reloads.labels(model.name, model.version, outcome)

    def ran(self, model: Model, session: Session) -> None:
        """Count what the session did since it was last looked at."""
        batcher = session.batcher
        now, before = batcher.stats(), self._seen.get(batcher, BatchStats())
        self._seen[batcher] = now
        labels = (model.name, model.version)
        for field, counter in self._ran_of(labels).items():
            if more := getattr(now, field) - getattr(before, field):
                counter.inc(more)
        if session.shadow is not None:
            self._looked_at(labels, session.shadow)

    def _ran_of(self, labels: tuple[str, str]) -> dict[str, Counter]:
        """The counters of one model; asking for labels takes longer than counting."""
        if labels not in self._series:
            self._series[labels] = {field: counter.labels(*labels) for field, counter in self._ran.items()}
        return self._series[labels]

    def _looked_at(self, labels: tuple[str, str], shadow: Shadow) -> None:
        now, before = shadow.stats(), self._checks.get(shadow, ShadowStats())
        self._checks[shadow] = now
        for outcome in CHECKS:
            more = getattr(now, outcome) - getattr(before, outcome)
            self._checked.labels(*labels, outcome).inc(more)
        self._worst.labels(*labels).set(now.worst)
        self._fell_back.labels(*labels).set(float(bool(now.fell_back)))

    def text(self) -> bytes:
        """All of it in Prometheus' text format. Safe in any thread."""
        return generate_latest(_WithAliases(self._collector()))

    def totals(self, model: Model) -> dict[str, float]:
        """The figures under Triton's names, of one model. Safe in any thread."""
        labels = {"model": model.name, "version": model.version}
        families = list(_WithAliases(self._collector()).collect())[-len(_ALIASES) :]
        found = {
            sample.name: sample.value for f in families for sample in f.samples if sample.labels == labels
        }
        return {name: found.get(name, 0.0) for name, *_ in _ALIASES}

    def _collector(self) -> Any:
        if os.environ.get(SHARED_FOLDER):
            return MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        return self._registry


class _WithAliases:
    """What `collector` gives, and the same under Triton's names."""

    def __init__(self, collector: Any) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        families = list(self._collector.collect())
        yield from families
        samples = [sample for family in families for sample in family.samples]
        for name, ours, factor, takes, documentation in _ALIASES:
            sums: dict[tuple[str, str], float] = {}
            for sample in samples:
                if sample.name == ours and takes(sample.labels):
                    key = (sample.labels["model"], sample.labels["version"])
                    sums[key] = sums.get(key, 0.0) + factor * sample.value
            # as a counter it would have to end in _total, which Triton's names do not
            alias = Metric(name, documentation, "unknown")
            for (model, version), value in sums.items():
                alias.add_sample(name, {"model": model, "version": version}, value)
            yield alias
