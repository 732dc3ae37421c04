"""An operator's commands on a server and its devices as the processes that run in the field."""

import json
import urllib.request

import pytest
from ports import free_port

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("starlette")

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
    port = free_port()
    server = site.serve(merged_rounds=1, probe_rounds=1, split_rounds=1, page=port)
    site.until(server, "the page is at")
    assert "round 0 waits for devices: 0 online, it needs 2" in command("status")
    assert "no round begins before `resume`" in command("pause")
    devices = [site.device(name, log_format="json") for name in ("kitchen", "hall")]
    for name in ("kitchen", "hall"):
        site.until(server, f"{name} has joined")
    assert "paused: round 0 begins after `resume`" in command("status")
    server.again()
    while server.said.count("the page is at") < 2:
        assert server.process.poll() is None, server.said
    fleet = command("fleet", "--json")
    while sum(json.loads(line)["doing"] == "idle" for line in fleet.splitlines()) < 2:
        fleet = command("fleet", "--json")
    status = json.loads(command("status", "--json"))
    assert (status["state"], status["is_paused"], status["online"]) == ("paused", True, 2)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status") as answer:
        assert json.load(answer)["says"] == status["says"]
    assert "cannot be dropped: no round waits for it" in command("drop", "kitchen", code=FAILED)
    assert "is not a device's name" in command("drop", "../x", code=FAILED)
    follower = site.run("events", "broker_server", "events", "--follow", "--state", site.state)
    command("resume")
    command("pause")  # the round that has begun goes on to its end
    site.until(follower, "the operator has resumed the federation")
    site.until(server, "round   0  before")
    row = json.loads(command("rounds", "--json", "--last", "1"))
    assert row["results"] == 2
    assert "merge" in command("status")
    command("stop")
    assert server.wait() == DONE
    assert follower.wait() == UNAVAILABLE, "it ends with the server"
    assert json.loads(command("status", "--json"))["state"] == "not running"
    assert "before 1/1" in command("rounds")
    assert command("events").count("the operator has") == 4
    assert "no server runs on" in command("pause", code=UNAVAILABLE)
    begun = len(server.said.splitlines())
    server = site.serve(merged_rounds=1, probe_rounds=1, split_rounds=1, log_format="json")
    while not any("listens on" in line for line in server.said.splitlines()[begun:]):
        assert server.process.poll() is None, server.said
    stranger = MqttLink(site.url, client_id="stranger", username="stranger", password="no token of ours")
    site.until(server, "refused stranger: the token is not valid")
    stranger.close()
    command("resume")
    site.ends(server, *devices)
    lines = [json.loads(line) for line in server.said.splitlines()[begun:]]
    (refused,) = [line for line in lines if "refused" in line]
    assert (refused["level"], refused["refused"], refused["count"]) == ("warning", "stranger", 1)
    assert {line["round"]["phase"] for line in lines if "round" in line} >= {"split", "end"}
    agent = [json.loads(line) for line in devices[0].said.splitlines()]
    assert {line["level"] for line in agent} <= {"info", "warning"}
    audit = [json.loads(line)["what"] for line in (site.state / "audit.jsonl").read_text().splitlines()]
    acts = [what for what in audit if what in {"paused", "resumed", "stopping"}]
    assert acts == ["paused", "resumed", "paused", "stopping", "resumed"]
