"""Metrics for Prometheus, by its client library: what views show, as numbers.

Rules
- The server's own thread publishes; a scrape reads what was published last and touches nothing of the server.
- Names follow Prometheus' conventions: a prefix, base units (seconds, bytes, joules), `_total` for what only grows.
- Labels are words of ours and names of tasks, so there are as many series as there are words. Devices are no label
  unless that is asked for, and then as many as fit into one view.
- What is not known is left out: it is never 0.
"""

# coverage: every branch

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

from broker_server.operator import messages as shown

PREFIX = "mas_edge"
BUCKETS_S = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0)
"""Upper bounds of the times of rounds."""


class MetricsUnavailable(OSError):
    """The port for metrics cannot be used; the sentence says why."""


class BrokerCounters(Protocol):
    """The counters of the embedded broker. A Protocol, because what has them is on another floor."""

    bytes_in: int
    bytes_out: int
    messages_in: int
    connections: int
    refused: Counter[str]
    dropped: Counter[str]
    malformed: Counter[str]
    closed: Counter[str]


class Metrics:
    """The numbers of a server, from its start on. `collect` may be called from any thread."""

    def __init__(self, broker: BrokerCounters | None = None, *, has_devices: bool = False) -> None:
        self.has_devices = has_devices
        self._broker = broker
        self._lock = threading.Lock()
        self._status: shown.FederationView | None = None
        self._fleet: shown.FleetView | None = None
        self._rounds: Counter[str] = Counter()
        self._wall_s: dict[str, float] = {}
        self._buckets: dict[str, list[int]] = {}
        self._bytes: Counter[str] = Counter()
        self._energy_j: dict[str, float] = {}

    def publish(self, status: shown.FederationView, fleet: shown.FleetView) -> None:
        """Take the views that the next scrapes are answered from."""
        self._status, self._fleet = status, fleet

    def add_round(self, closed: shown.RoundView) -> None:
        """Count a round that has closed."""
        with self._lock:
            work = closed.work
            self._rounds[work] += 1
            count = self._buckets.setdefault(work, [0] * (len(BUCKETS_S) + 1))
            for index, bound in enumerate((*BUCKETS_S, float("inf"))):
                count[index] += closed.wall_s <= bound
            self._wall_s[work] = self._wall_s.get(work, 0.0) + closed.wall_s
            self._bytes["up"] += closed.bytes_up or 0
            self._bytes["down"] += closed.bytes_down or 0
            if closed.energy_j is not None:
                kind = "estimated" if closed.is_estimated else "measured"
                self._energy_j[kind] = self._energy_j.get(kind, 0.0) + closed.energy_j

    def describe(self) -> Iterable[Metric]:
        """Name nothing in advance: what there is depends on what is known."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of a scrape."""
        found: list[Metric] = []
        if self._status is not None:
            found += _of_status(self._status)
        if self._fleet is not None:
            doing: dict[str, float] = dict(self._fleet.doing.items())
            found.append(_gauge("devices", "Devices, by what they do.", doing, "doing"))
            if self.has_devices:
                found += _of_devices(self._fleet.rows)
        with self._lock:
            found += self._of_rounds()
        if self._broker is not None:
            found += _of_broker(self._broker)
        return found

    def _of_rounds(self) -> Iterable[Metric]:
        walls = HistogramMetricFamily(
            f"{PREFIX}_round_duration_seconds", "Times that rounds have taken.", labels=["work"]
        )
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        for work, counts in self._buckets.items():
            walls.add_metric([work], list(zip(bounds, counts, strict=True)), self._wall_s[work])
        yield walls
        yield _counter("rounds_closed", "Rounds that have closed.", self._rounds, "work")
        yield _counter("round_bytes", "Bytes of closed rounds on the wire.", self._bytes, "direction")
        yield _counter(
            "round_energy_joules", "Energy of closed rounds on devices that report it.", self._energy_j, "kind"
        )


def serve(metrics: Metrics, host: str, port: int) -> Callable[[], None]:
    """Answer scrapes at http://host:port/metrics; return what ends it. Raises MetricsUnavailable."""
    registry = CollectorRegistry()
    registry.register(_any(metrics))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as exc:
        raise MetricsUnavailable(
            f"metrics cannot be served at {host}:{port}: {exc}; choose another with --metrics"
        ) from exc

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def _of_status(status: shown.FederationView) -> Iterable[Metric]:
    yield InfoMetricFamily(
        f"{PREFIX}_server", "The server.", value={"version": status.version, "federation": status.federation}
    )
    yield _gauge("state", "1 for the state of the federation.", {status.state: 1}, "state")
    yield _plain("paused", "1 while no round may begin.", status.is_paused)
    yield _plain("devices_known", "Devices that have ever joined.", status.known)
    yield _plain("devices_online", "Devices that may be asked to work.", status.online)
    yield _plain("devices_needed", "Devices online before a round begins.", status.needed)
    yield _gauge("loss", "Each task's loss, from the last round that had it.", status.losses, "task")
    yield _counter("messages_dropped", "Messages that were dropped or declined.", status.dropped, "reason")
    yield _counter("refused", "Events of devices that were not believed, and logins.", status.refused, "reason")
    if status.phases:
        yield _plain("phase_rounds", "Rounds of the phase.", status.phases[-1].rounds)
        yield _plain("phase_rounds_done", "Rounds of the phase that are closed.", status.phases[-1].done)
    if status.phase_left_s is not None:
        yield _plain("phase_left_seconds", "Time until the phase ends, by its last rounds.", status.phase_left_s)
    if status.open is not None:
        yield from _of_round(status.open)


def _of_round(current: shown.RoundNow) -> Iterable[Metric]:
    members = {"counted": current.results, "refused": current.refused, "rejected": current.rejected}
    yield _plain("round_number", "The number of the round that is open.", current.number)
    yield _plain("round_quorum", "Results that it needs.", current.quorum)
    yield _gauge("round_members", "Its members.", members | {"unanswered": current.unanswered}, "state")
    if current.begun_at_s is not None:
        yield _plain("round_begun_timestamp_seconds", "When it began, since the epoch.", current.begun_at_s)
    if current.deadline_in_s is not None:
        yield _plain("round_deadline_seconds", "Time until its deadline.", current.deadline_in_s)


def _of_devices(rows: Iterable[shown.DeviceView]) -> Iterable[Metric]:
    figures: dict[str, tuple[str, dict[str, float | None]]] = {
        "device_work_seconds": ("Time of its last result.", {each.name: each.work_s for each in rows}),
        "device_memory_peak_bytes": ("Its largest memory in its last result.", {e.name: e.peak_bytes for e in rows}),
        "device_memory_budget_bytes": ("Its memory budget.", {each.name: each.budget_bytes for each in rows}),
        "device_energy_joules": ("Energy of its last result.", {each.name: each.energy_j for each in rows}),
        "device_temperature_celsius": ("Its highest in its last result.", {e.name: e.temperature_c for e in rows}),
    }
    yield _gauge("device_online", "1 if it is.", {each.name: each.doing not in shown.AWAY for each in rows}, "device")
    for name, (text, values) in figures.items():
        yield _gauge(name, text, {device: value for device, value in values.items() if value is not None}, "device")


def _of_broker(broker: BrokerCounters) -> Iterable[Metric]:
    yield _counter(
        "broker_bytes", "Bytes through its sockets.", {"in": broker.bytes_in, "out": broker.bytes_out}, "direction"
    )
    yield _counter("broker_messages", "Messages that clients published.", {"": broker.messages_in})
    yield _counter("broker_connections", "Connections that were accepted.", {"": broker.connections})
    yield _counter("broker_refused", "What clients were not allowed.", broker.refused, "reason")
    yield _counter("broker_messages_dropped", "Messages that a subscriber did not get.", broker.dropped, "reason")
    yield _counter("broker_malformed", "Packets that broke the protocol.", broker.malformed, "reason")
    yield _counter("broker_closed", "Connections that have ended.", broker.closed, "reason")


def _plain(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _gauge(name: str, text: str, values: Mapping[str, float], label: str) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=[label])
    for word, value in sorted(values.items()):
        family.add_metric([word], value)
    return family


def _counter(name: str, text: str, values: Mapping[str, float], label: str | None = None) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=None if label is None else [label])
    for word, value in sorted(dict(values).items()):
        family.add_metric([] if label is None else [word], value)
    return family


def _any(collector: Any) -> Any:
    """Return a collector without its type: the library names a base class, and asks for a method."""
    return collector
