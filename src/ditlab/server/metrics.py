"""Metrics of the service: hooks that do nothing, and hooks that count for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4"
BATCH_ROWS = [float(2**i) for i in range(11)]


class Metrics:
    """What the service reports while it works. These hooks do nothing."""

    def network_call(self, rows: int, seconds: float) -> None:
        """Called after each network call."""

    def started(self) -> None:
        """A request started."""

    def ended(self) -> None:
        """A request ended, for whatever reason."""

    def generated(self, images: int) -> None:
        """A request succeeded with this number of images."""

    def rejected(self) -> None:
        """A request was rejected because too many are in progress."""

    def canceled(self) -> None:
        """A request was canceled because its client disconnected."""

    def failed(self) -> None:
        """A request failed through a fault of the service."""


class PrometheusMetrics(Metrics):
    """Counts in a Prometheus registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._in_progress = Gauge("ditlab_requests_in_progress", "Requests in progress.", registry=registry)
        self._images = Counter("ditlab_images", "Images generated.", registry=registry)
        self._rejected = Counter("ditlab_requests_rejected", "Requests rejected with 429.", registry=registry)
        self._canceled = Counter("ditlab_requests_canceled", "Requests canceled by the client.", registry=registry)
        self._failed = Counter("ditlab_requests_failed", "Requests that failed.", registry=registry)
        self._rows = Histogram(
            "ditlab_batch_rows", "Batch rows of a network call.", buckets=BATCH_ROWS, registry=registry
        )
        self._seconds = Histogram("ditlab_call_seconds", "Duration of a network call.", registry=registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def network_call(self, rows: int, seconds: float) -> None:
        self._rows.observe(rows)
        self._seconds.observe(seconds)

    def started(self) -> None:
        self._in_progress.inc()

    def ended(self) -> None:
        self._in_progress.dec()

    def generated(self, images: int) -> None:
        self._images.inc(images)

    def rejected(self) -> None:
        self._rejected.inc()

    def canceled(self) -> None:
        self._canceled.inc()

    def failed(self) -> None:
        self._failed.inc()
