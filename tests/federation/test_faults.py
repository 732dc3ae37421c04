"""Processes that are cut off at random moments, and one that never comes back."""

import random
import time

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.workstation


@pytest.mark.parametrize(("scheme", "kills"), [pytest.param("fp32", 6, marks=pytest.mark.long), ("int8", 3)])
def test_federation_cut_off_at_random_moments_ends_as_if_it_had_not_been(make_site, scheme, kills):
    # Long enough rounds to be hit in the middle of training.
    settings = {"min_devices": 2, "quorum": 2, "merged_rounds": 3, "epochs": 150, "update_scheme": scheme}
    counts = {"a": 10, "b": 6}
    calm = make_site("calm")
    server = calm.serve(**settings)
    expected = calm.ends(server, *(calm.device(name, count) for name, count in counts.items()))
    site, chance, hit = make_site("site"), random.Random(5), []
    server = site.serve(**settings)
    devices = [site.device(name, count) for name, count in counts.items()]
    site.until(server, "b has joined")
    while len(hit) < kills:
        time.sleep(chance.uniform(0.2, 1.5))
        victim = [server, *devices][len(hit) % 3]
        if server.process.poll() is not None or not victim.again():
            break
        hit.append(victim)
    assert {server, *devices} <= set(hit), "the federation ended too early to be disturbed"
    assert site.ends(server, *devices) == expected
    assert "goes on" in server.said, "the server was never hit in the middle of a round"
    assert [row["clients"] for row in site.report()["rounds"]] == [["a", "b"]] * 5
    assert site.report()["affinity"] == calm.report()["affinity"]
    assert site.report()["test_loss"] == calm.report()["test_loss"]


def test_federation_goes_on_without_a_device_that_never_comes_back(site):
    server = site.serve(min_devices=2, quorum=2, round_deadline_s=8, epochs=200)
    lost = site.device("c")
    site.until(server, "c has joined")  # so that it is one of the first two, and in every round from the first
    devices = [site.device(name) for name in "ab"]
    site.until(lost, "round 1: train")
    lost.kill()
    site.ends(server, *devices)
    clients = [row["clients"] for row in site.report()["rounds"]]
    assert clients[-1] == ["a", "b"]
    assert "closes at its deadline without 1 of its members" in server.said or ["a", "b", "c"] not in clients
