"""Devices that have something of their own: over MQTT with real processes that are killed, and in simulation."""

import itertools
import time

import msgspec
import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.workstation
KILLS = 2


@pytest.mark.parametrize(
    "strategy",
    [
        "ditto",
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ("fedper", "fedrep", "pfedme", "mat_fl", "fedhca2", "deep_mocha", "multilinear")
        ),
    ],
)
def test_killed_processes_over_mqtt_end_where_a_simulation_does(bench, strategy):
    bench.run(bench.experiment(f'[methods.it]\nstrategy = "{strategy}"\n'))
    folder = bench.root / "out" / "runs" / "it" / "7"
    expected = msgspec.json.decode((folder / "report.json").read_bytes())
    server = bench.site.serve(min_devices=2, strategy=strategy)
    devices = [bench.site.device(name, count) for name, count in (("attic", 10), ("cellar", 7))]
    bench.site.until(server, "cellar has joined")
    for victim in itertools.islice(itertools.cycle([devices[0], server]), KILLS):
        time.sleep(0.3)
        victim.again()
    assert bench.site.ends(server, *devices) == bench.models("it")
    found = bench.site.report()
    assert found["strategy"] == strategy
    assert found["spread"] == expected["spread"]
    for spread in found["spread"].values():
        assert set(spread["by_device"]) == {"attic", "cellar"}
    if strategy in {"fedper", "fedrep", "mat_fl"}:  # heads have never been on the way
        assert max(row["update_ratio"] for row in found["rounds"]) < 1
