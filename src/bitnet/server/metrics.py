"""What the server counts, for Prometheus: names of models and numbers, never a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from bitnet.server.exchange import Exchange
    from bitnet.server.serving import ServedModels
    from bitnet.values import Timings

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_Labelled = TypeVar("_Labelled", Counter, Histogram)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of one app, in a registry of their own."""

    def __init__(self, models: ServedModels, n_requests: Callable[[], int]) -> None:
        """n_requests: tells how many are under way."""
        self._registry = CollectorRegistry()
        self._children: dict[tuple[object, ...], Any] = {}
        self._requests = Counter(
            "bitnet_requests", "Requests answered.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "bitnet_request_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        in_flight = Gauge("bitnet_requests_in_flight", "Requests under way.", registry=self._registry)
        in_flight.set_function(n_requests)
        self._stopped = Counter(
            "bitnet_stopped_computations",
            "Computations stopped before their end: disconnect, deadline, shutdown.",
            ["reason"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "bitnet_tokens",
            "Tokens of answered requests: prompt, cached (of the prompt, not computed), completion.",
            ["model", "kind"],
            registry=self._registry,
        )
        self._first_token = Histogram(
            "bitnet_time_to_first_token_seconds",
            "From a request's place in the queue to its first token.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_EngineMetrics(models))

    def ended(self, exchange: Exchange, status: int, seconds: float) -> None:
        """A request is over."""
        route = exchange.route or "none"
        self._of(self._requests, route, str(status)).inc()
        self._of(self._seconds, route).observe(seconds)
        usage = exchange.usage
        if usage is not None:
            self._of(self._tokens, exchange.model, "prompt").inc(usage.prompt_tokens)
            self._of(self._tokens, exchange.model, "cached").inc(usage.cached_tokens)
            self._of(self._tokens, exchange.model, "completion").inc(usage.completion_tokens)

    def _of(self, metric: _Labelled, *labels: str) -> _Labelled:
        """metric.labels(*labels), which checks and locks each time, at a tenth of the cost."""
        key = (id(metric), *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        found: _Labelled = child
        return found

    def answered(self, model: str, timings: Timings) -> None:
        self._of(self._first_token, model).observe(timings.time_to_first_token)

    def stopped(self, reason: str) -> None:
        self._stopped.labels(reason).inc()

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)


class _EngineMetrics(Collector):
    """Asks the engines when somebody looks."""

    def __init__(self, models: ServedModels) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        loaded = GaugeMetricFamily("bitnet_model_loaded", "Whether a model is loaded.", labels=["model"])
        gauges = {
            name: GaugeMetricFamily(f"bitnet_engine_{name}", text, labels=["model"])
            for name, text in (
                ("running", "Sequences being computed."),
                ("waiting", "Sequences waiting for their turn."),
                ("free_blocks", "Key/value blocks not in use."),
                ("cached_blocks", "Key/value blocks not in use that hold earlier prompts."),
                ("n_blocks", "Key/value blocks."),
            )
        }
        counters = {
            name: CounterMetricFamily(f"bitnet_engine_{name}", text, labels=["model"])
            for name, text in (
                ("n_steps", "Forward passes since the model was loaded."),
                ("n_tokens", "Tokens computed since the model was loaded."),
            )
        }
        for name, model in self._models.items():
            health = model.health()
            loaded.add_metric([name], 0 if health is None or health.closed else 1)
            if health is not None:
                for field, gauge in gauges.items():
                    gauge.add_metric([name], getattr(health, field))
                for field, counter in counters.items():
                    counter.add_metric([name], getattr(health, field))
        yield loaded
        yield from gauges.values()
        yield from counters.values()
