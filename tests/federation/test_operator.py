"""An operator's commands on a server and its devices as the processes that run in the field."""

import json
import signal

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.__main__ import main
from devices.cli.run import DONE, FAILED, UNAVAILABLE

pytestmark = pytest.mark.workstation


def test_operator_sees_and_steers_a_federation(site, capsys):
    def command(*words, code=DONE):
        capsys.readouterr()
        assert main([*words, "--state", str(site.state)]) == code
        said = capsys.readouterr()
        return said.out if code == DONE else said.err

    assert "no server runs on" in command("status", code=UNAVAILABLE)
    server = site.serve(merged_rounds=1, probe_rounds=1, split_rounds=1)
    site.until(server, "listens on")
    assert "round 0 waits for devices: 0 online, it needs 2" in command("status")
    assert "no round begins before `resume`" in command("pause")
    devices = [site.device(name) for name in ("kitchen", "hall")]
    for name in ("kitchen", "hall"):
        site.until(server, f"{name} has joined")
    assert "paused: round 0 begins after `resume`" in command("status")
    server.again()
    site.until(server, "listens on")
    fleet = command("fleet", "--json")
    while sum(json.loads(line)["doing"] == "idle" for line in fleet.splitlines()) < 2:
        fleet = command("fleet", "--json")
    status = json.loads(command("status", "--json"))
    assert (status["state"], status["is_paused"], status["online"]) == ("paused", True, 2)
    assert "cannot be dropped: no round waits for it" in command("drop", "kitchen", code=FAILED)
    assert "is not a device's name" in command("drop", "../x", code=FAILED)
    follower = site.run("events", "broker_server", "events", "--follow", "--state", site.state)
    command("resume")
    site.until(follower, "the operator has resumed the federation")
    site.until(server, "round   1  merge")
    (row,) = map(json.loads, command("rounds", "--json", "--last", "1").splitlines())
    assert (row["phase"], row["results"]) == ("merge", 2)
    command("stop")
    assert server.wait() == DONE
    assert follower.wait() == UNAVAILABLE, "it ends with the server"
    assert "not running" in json.loads(command("status", "--json"))["state"]
    assert "before 1/1" in command("rounds")
    assert command("events").count("the operator has") == 3
    assert "no server runs on" in command("pause", code=UNAVAILABLE)
    server.start()
    site.ends(server, *devices)
    audit = [json.loads(line)["what"] for line in (site.state / "audit.jsonl").read_text().splitlines()]
    assert [what for what in audit if what in {"paused", "resumed", "stopping"}] == ["paused", "resumed", "stopping"]
    for process in devices:
        process.signal(signal.SIGTERM) if process.process.poll() is None else None
