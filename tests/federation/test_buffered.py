"""Buffered rounds of real processes over MQTT, which are cut off, too."""

import time

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.rounds.journal import FederationJournal

pytestmark = [pytest.mark.workstation, pytest.mark.process]


def test_a_slow_device_and_kills_lose_nothing_and_count_nothing_twice(site):
    server = site.serve(
        strategy="all_in_one", merged_rounds=11, split_rounds=1, min_devices=2, round_mode="buffered", buffer_size=2,
        epochs=20,
    )  # fmt: skip
    devices = [site.device("slow", 10), site.device("quick", 2), site.device("quicker", 1)]
    site.until(server, "slow has joined")
    for victim in (server, devices[0], server):
        time.sleep(1.0)
        assert victim.again(), "the federation ended too early to be disturbed"
    assert set(site.ends(server, *devices)) == {"depth+normals+segmentation"}
    journal = FederationJournal(site.state / "federation.sqlite3")
    rows = [row.round.number for row in journal.rounds() if row.round.work == "train"]
    counted = [(name, result.round, number) for number in rows for name, result in journal.results(number).items()]
    journal.close()
    assert len(rows) == 12
    assert len({(name, version) for name, version, _ in counted}) == len(counted)
    assert all(0 <= number - version <= 20 for _, version, number in counted)
    assert any(number > version for _, version, number in counted), "nobody was ever behind"
