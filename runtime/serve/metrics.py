"""The metrics at /metrics, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .scheduler import Scheduler

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The server's metrics. HTTP requests are counted as they end; the scheduler's counters are read on demand.

    Attributes:
        requests: counter by endpoint and status
        first_token: histogram of the seconds to the first token
        duration: histogram of the seconds to the last token
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(SchedulerCollector(scheduler))
        self.requests = Counter(
            "edgellama_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=self.registry
        )
        self.first_token = Histogram(
            "edgellama_time_to_first_token_seconds",
            "From the request to the first token of an answer",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "edgellama_answer_seconds",
            "From the request to its last token",
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class SchedulerCollector(Collector):
    """Reads the scheduler's state and counters when Prometheus collects."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        """Yields a gauge for each state and a counter for each total."""
        scheduler, counters = self.scheduler, self.scheduler.counters
        for name, text, value in (
            ("edgellama_rows", "Rows of the artifact: answers that can run at once", scheduler.engine.batch),
            ("edgellama_answers_running", "Answers that have a row", scheduler.running),
            ("edgellama_answers_waiting", "Answers in the queue", scheduler.waiting),
            ("edgellama_cache_memory_bytes", "Memory of texts that no row holds", scheduler.store.nbytes),
            ("edgellama_cache_memory_limit_bytes", "Most memory of such texts", scheduler.store.limit),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, total in (
            ("edgellama_prompt_tokens", "Tokens of prompts", counters.prompt_tokens),
            ("edgellama_cached_prompt_tokens", "Prompt tokens that were in the cache already", counters.cached_tokens),
            (
                "edgellama_restored_prompt_tokens",
                "Prompt tokens in the cache that came from the cache memory",
                counters.restored_tokens,
            ),
            ("edgellama_new_tokens", "Tokens generated", counters.new_tokens),
            ("edgellama_prefill_passes", "Passes over chunks of prompts", counters.prefill_passes),
            ("edgellama_decode_passes", "Passes that add a token to every running answer", counters.decode_passes),
            ("edgellama_guessed_tokens", "Tokens that prompt lookup guessed", counters.timings.guessed_tokens),
            ("edgellama_accepted_tokens", "Guesses that were right", counters.timings.accepted_tokens),
            ("edgellama_engine_seconds", "Seconds in the model", counters.engine_seconds),
        ):
            yield CounterMetricFamily(name, text, value=total)
