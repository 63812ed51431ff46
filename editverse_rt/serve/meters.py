"""The server's metrics; labels are bounded: states, kinds, phases, devices, routes as templates."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from editverse_rt.serve.job import STATES
from editverse_rt.serve.live import LiveRun

__all__ = ["Meters"]

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600)


class Meters:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Gauge("editverse_jobs", "Jobs by state", ["state"], registry=self.registry)
        self.jobs_total = Counter(
            "editverse_job_runs_total", "Runs that ended", ["kind", "outcome"], registry=self.registry
        )
        self.rejected_total = Counter(
            "editverse_rejected_total", "Requests that were refused", ["reason"], registry=self.registry
        )
        self.queue_wait_s = self._seconds("editverse_queue_wait_seconds", "From queued to begun")
        self.job_s = self._seconds("editverse_job_seconds", "From begun to its end", "kind", "schedule")
        self.stage_s = self._seconds("editverse_stage_seconds", "By phase", "stage")
        self.step_s = self._seconds("editverse_step_seconds", "A solver step, on average over a job")
        self.cancel_s = self._seconds("editverse_cancel_seconds", "From cancel to a free device")
        self.memory_bytes = Gauge(
            "editverse_memory_bytes", "Memory by device", ["device", "what"], registry=self.registry
        )
        self.worker_up = Gauge(
            "editverse_worker_up", "Whether a worker is up", ["device"], registry=self.registry
        )
        self.worker_restarts_total = Counter(
            "editverse_worker_restarts_total",
            "Workers that ended",
            ["device", "reason"],
            registry=self.registry,
        )
        self.disk_bytes = Gauge("editverse_disk_bytes", "Disk by use", ["what"], registry=self.registry)
        self.http_requests_total = Counter(
            "editverse_http_requests_total", "Requests", ["route", "method", "code"], registry=self.registry
        )

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=_SECONDS, registry=self.registry)

    def job_over(self, run: LiveRun, outcome: str, now: float) -> None:
        """Count a run that has ended."""
        kind = "edit" if run.job.inputs else "generate"
        self.jobs_total.labels(kind, outcome).inc()
        if run.cancelled_s is not None:
            self.cancel_s.observe(now - run.cancelled_s)
        if outcome != "completed":
            return
        self.job_s.labels(kind, run.job.estimate["schedule"]).observe(now - run.begun_s)
        for stage, seconds in run.stage_s.items():
            self.stage_s.labels(stage).observe(seconds)
        if run.step_s is not None:
            self.step_s.observe(run.step_s)

    def worker_ended(self, device: str, reason: str) -> None:
        """Count a worker's end; the signals that ended it are one reason."""
        self.worker_restarts_total.labels(device, "silent" if reason == "silent" else "exit").inc()

    def render(self, counts: dict[str, int]) -> bytes:
        """The text of all metrics. counts: of jobs by state."""
        for state in STATES:
            self.jobs.labels(state).set(counts.get(state, 0))
        return generate_latest(self.registry)
