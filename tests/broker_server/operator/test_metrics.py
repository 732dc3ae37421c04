import socket
import urllib.error
import urllib.request

import msgspec
import pytest
from ports import free_port
from view_samples import BARE, DEVICE, ROUND, STATUS

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from broker_server.mqtt.stats import Stats
from broker_server.operator import messages as shown
from broker_server.operator import metrics as prometheus
from broker_server.operator.metrics import Metrics, MetricsUnavailable

pytestmark = pytest.mark.workstation
FLEET = shown.FleetView(rows=(DEVICE, BARE), total=2, doing={"new": 1, "working": 1})


@pytest.fixture
def scrape():
    """What a scrape of some metrics finds: the value of each sample, by its name and its labels' values in order."""
    stops = []

    def once(metrics):
        port = free_port()
        stops.append(prometheus.serve(metrics, "127.0.0.1", port))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    yield once
    for stop in stops:
        stop()


def test_metrics_of_a_server_that_has_just_begun(scrape):
    found = scrape(Metrics())
    assert found["process_cpu_seconds_total",] > 0
    assert [name for name, *_ in found if name.startswith("mas_edge")] == []


def test_metrics_of_a_federation(scrape):
    metrics = Metrics()
    metrics.publish(STATUS, FLEET)
    metrics.add_round(ROUND)
    metrics.add_round(msgspec.structs.replace(ROUND, is_estimated=True, bytes_down=None, wall_s=0.5))
    metrics.add_round(msgspec.structs.replace(ROUND, work="evaluate", energy_j=None, wall_s=1e6))
    found = scrape(metrics)
    expected = {
        ("mas_edge_server_info", "1", "home"): 1,
        ("mas_edge_state", "training"): 1,
        ("mas_edge_paused",): 0,
        ("mas_edge_devices_known",): 14,
        ("mas_edge_devices_online",): 13,
        ("mas_edge_devices_needed",): 2,
        ("mas_edge_devices", "new"): 1,
        ("mas_edge_loss", "a"): 1.0,
        ("mas_edge_messages_dropped_total", "result late"): 2,
        ("mas_edge_refused_total", "device that is revoked"): 3,
        ("mas_edge_phase_rounds",): 2,
        ("mas_edge_phase_rounds_done",): 0,
        ("mas_edge_phase_left_seconds",): 100,
        ("mas_edge_round_number",): 3,
        ("mas_edge_round_quorum",): 7,
        ("mas_edge_round_members", "unanswered"): 12,
        ("mas_edge_round_members", "counted"): 1,
        ("mas_edge_round_begun_timestamp_seconds",): 1,
        ("mas_edge_round_deadline_seconds",): 3588,
        ("mas_edge_rounds_closed_total", "train"): 2,
        ("mas_edge_rounds_closed_total", "evaluate"): 1,
        ("mas_edge_round_duration_seconds_sum", "train"): 13.0,
        ("mas_edge_round_duration_seconds_count", "train"): 2,
        ("mas_edge_round_duration_seconds_bucket", "1.0", "train"): 1,
        ("mas_edge_round_duration_seconds_bucket", "30.0", "train"): 2,
        ("mas_edge_round_duration_seconds_bucket", "10000.0", "evaluate"): 0,
        ("mas_edge_round_duration_seconds_bucket", "+Inf", "evaluate"): 1,
        ("mas_edge_round_bytes_total", "up"): 3,
        ("mas_edge_round_bytes_total", "down"): 2,
        ("mas_edge_round_energy_joules_total", "measured"): 12,
        ("mas_edge_round_energy_joules_total", "estimated"): 12,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert not [name for name, *_ in found if name.startswith("mas_edge_device_")], "devices are no label"


def test_metrics_leave_out_what_is_not_known(scrape):
    metrics = Metrics(has_devices=True)
    unknown = msgspec.structs.replace(STATUS.open, begun_at_s=None, deadline_in_s=None)
    metrics.publish(msgspec.structs.replace(STATUS, phases=(), phase_left_s=None, open=unknown), FLEET)
    found = scrape(metrics)
    assert found["mas_edge_round_number",] == 3
    for name in ("phase_rounds", "phase_left_seconds", "round_begun_timestamp_seconds", "round_deadline_seconds"):
        assert (f"mas_edge_{name}",) not in found
    assert found["mas_edge_device_online", "pi-07"] == 1
    assert found["mas_edge_device_online", "new-one"] == 0
    assert found["mas_edge_device_memory_peak_bytes", "pi-07"] == 150 << 20
    assert ("mas_edge_device_memory_peak_bytes", "new-one") not in found
    metrics.publish(msgspec.structs.replace(STATUS, open=None), FLEET)
    assert ("mas_edge_round_number",) not in scrape(metrics)


def test_metrics_of_the_embedded_broker(scrape):
    stats = Stats(bytes_in=10, bytes_out=20, messages_in=3, connections=4)
    stats.refused["token"] += 5
    stats.closed["slow"] += 6
    found = scrape(Metrics(stats))
    assert found["mas_edge_broker_bytes_total", "in"] == 10
    assert found["mas_edge_broker_messages_total",] == 3
    assert found["mas_edge_broker_connections_total",] == 4
    assert found["mas_edge_broker_refused_total", "token"] == 5
    assert found["mas_edge_broker_closed_total", "slow"] == 6


def test_metrics_at_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsUnavailable, match=f"127.0.0.1:{port}.*--metrics"):
            prometheus.serve(Metrics(), "127.0.0.1", port)
    with pytest.raises(MetricsUnavailable):
        prometheus.serve(Metrics(), "not a host", port)


def test_metrics_are_no_more_once_stopped():
    port = free_port()
    prometheus.serve(Metrics(), "127.0.0.1", port)()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics")
