"""An operator's commands on a server and its devices as the processes that run in the field."""

import json

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.__main__ import main
from devices.cli.run import DONE, FAILED, UNAVAILABLE
from edge_runtime.wire.mqtt import MqttLink

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
    devices = [site.device(name, log_format="json") for name in ("kitchen", "hall")]
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
    begun = len(server.said.splitlines())
    server = site.serve(merged_rounds=1, probe_rounds=1, split_rounds=1, log_format="json")
    while not any("listens on" in line for line in server.said.splitlines()[begun:]):
        assert server.process.poll() is None, server.said
    stranger = MqttLink(site.url, client_id="stranger", username="stranger", password="no token of ours")
    site.until(server, "refused stranger: the token is not valid")
    stranger.close()
    site.ends(server, *devices)
    lines = [json.loads(line) for line in server.said.splitlines()[begun:]]
    (refused,) = [line for line in lines if "refused" in line]
    assert (refused["level"], refused["refused"], refused["count"]) == ("warning", "stranger", 1)
    assert {line["round"]["phase"] for line in lines if "round" in line} >= {"split", "end"}
    agent = [json.loads(line) for line in devices[0].said.splitlines()]
    assert {line["level"] for line in agent} <= {"info", "warning"}
    audit = [json.loads(line)["what"] for line in (site.state / "audit.jsonl").read_text().splitlines()]
    assert [what for what in audit if what in {"paused", "resumed", "stopping"}] == ["paused", "resumed", "stopping"]
