import json
from pathlib import Path

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.__main__ import main
from broker_server.server.config import SETTINGS, read
from broker_server.server.state import StateFolder
from devices.cli.run import BAD_INPUT, DONE, UNAVAILABLE, USAGE

pytestmark = pytest.mark.workstation
GOLDEN = Path(__file__).parents[1] / "fixtures" / "split_golden.json"


@pytest.mark.parametrize(("flag", "mode"), [(None, "exactly"), ("--at-most", "at_most"), ("--overlap", "overlap")])
def test_split_prints_json(capsys, flag, mode):
    golden = json.loads(GOLDEN.read_text())
    for case in (c for c in golden["expected"] if c["mode"] == mode):
        arguments = ["split", "--affinity", str(GOLDEN), "--groups", str(case["groups"]), "--json"]
        assert main([*arguments, *([flag] if flag else [])]) == DONE
        found = json.loads(capsys.readouterr().out)
        assert sorted(map(sorted, found["groups"])) == sorted(map(sorted, case["partition"]))
        assert found["score"] == pytest.approx(case["score"], abs=1e-5)
        assert found["mode"] == mode


def test_split_prints_text(capsys):
    assert main(["split", "--affinity", str(GOLDEN), "--groups", "2"]) == DONE
    assert "s+d+n  k+t" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", [None, "", "[", '{"tasks": ["a"]}', '{"tasks": ["a", "b"], "values": [[1]]}', "\udcff"]
)
def test_split_bad_file(tmp_path, capsys, text):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    assert main(["split", "--affinity", str(path), "--groups", "1"]) == BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_enrol_twice(tmp_path, capsys):
    arguments = ["enrol", "pi", "--out", str(tmp_path / "agent.toml"), "--state", str(tmp_path / "state")]
    assert main(arguments) == DONE
    assert main(arguments) == USAGE
    assert "--force" in capsys.readouterr().err


def test_enrol_writes_what_the_agent_reads(tmp_path):
    from edge_runtime.agent.config import read

    out = tmp_path / "agent.toml"
    assert main(["enrol", "pi", "--out", str(out), "--state", str(tmp_path / "state")]) == DONE
    assert (read(out).device, read(out).data, read(out).ca_file) == ("pi", tmp_path / "data", None)


def test_enrol_with_what_the_device_needs(tmp_path):
    out = tmp_path / "agent.toml"
    more = ["--threads", "2", "--ca-file", "ca.pem", "--url", "mqtts://server.lan"]
    assert main(["enrol", "pi", "--out", str(out), "--state", str(tmp_path / "state"), *more]) == DONE
    assert {'url = "mqtts://server.lan"', "threads = 2", 'ca_file = "ca.pem"'} < set(out.read_text().splitlines())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--lr", "-1"], "argument --lr: '-1' is not a number, above 0 and at most 1000"),
        (["--lr", "much"], "argument --lr: 'much' is not a number"),
        (["--task-weights", "depth=-1"], "argument --task-weights: 'depth=-1' is not a number for each task"),
        (["--task-weights", "depth"], "argument --task-weights"),
        (["--optimizer", "adam"], "argument --optimizer: invalid choice: 'adam'"),
        (["--choice", "luck"], "argument --choice: 'luck' is not one of"),
    ],
)
def test_serve_bad_settings(tmp_path, capsys, words, why):
    with pytest.raises(SystemExit) as ended:
        main(["--state", str(tmp_path), *words])
    assert ended.value.code == USAGE
    assert why in capsys.readouterr().err


def test_serve_bundle_that_is_not_there(tmp_path, capsys):
    assert main(["--state", str(tmp_path), "--bundle", str(tmp_path / "none"), "--port", "0"]) == BAD_INPUT
    assert "not a bundle" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "check"])
def test_state_folder_that_is_not_there(tmp_path, capsys, command):
    assert main([command, "--state", str(tmp_path / "none")]) == 3
    assert f"error: {tmp_path / 'none'} is not a state folder: name the server's" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_help_fits_on_a_screen_and_a_half_and_all_of_it_is_there_when_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 75
    assert "--proximal-mu" not in short
    with pytest.raises(SystemExit) as ended:
        main(["--help-all"])
    assert ended.value.code == 0
    full = capsys.readouterr().out
    assert all(each.flag in full for each in SETTINGS)


def test_settings_are_printed_with_where_each_came_from(tmp_path, capsys):
    path = tmp_path / "server.toml"
    path.write_text("[training]\nlr = 0.5\n")
    words = ["settings", "--config", str(path), "--batch", "4", "--task-weights", "a=2", "--state", str(tmp_path)]
    assert main([*words, "--json"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["training.lr"] == {"value": 0.5, "source": str(path)}
    assert found["training.batch"] == {"value": 4, "source": "command line"}
    assert found["seed"] == {"value": 0, "source": "default"}
    assert main(words) == DONE
    assert f"training.lr 0.5 ({path})" in " ".join(capsys.readouterr().out.split())
    assert main([*words, "--toml"]) == DONE
    again = tmp_path / "again.toml"
    again.write_text(capsys.readouterr().out)
    flags = {"training": {"batch": 4, "task_weights": {"a": 2.0}}, "state": tmp_path}
    assert read(again).value == read(path, flags).value


@pytest.mark.parametrize(("flag", "file"), [("--document", "settings.md"), ("--schema", "settings.schema.json")])
def test_documents_of_settings_are_up_to_date(capsys, flag, file):
    assert main(["settings", flag]) == DONE
    made = capsys.readouterr().out
    there = (Path(__file__).parents[2] / "docs" / file).read_text(encoding="utf-8")
    assert there == made, f"run `python -m broker_server settings {flag} > docs/{file}`"


def test_settings_of_before_are_read_with_a_sentence(tmp_path, capsys, caplog):
    path = tmp_path / "server.toml"
    path.write_text('strategy = "fedbone"\nstems = "own"\n[training]\nmerging = "pcgrad"\n')
    assert main(["settings", "--config", str(path), "--general", "host", "--json"]) == DONE
    found = {key: each["value"] for key, each in json.loads(capsys.readouterr().out).items()}
    assert (found["local_stems"], found["training.gradient_combination"]) == (True, "pcgrad")
    assert (found["grouping.strategy"], found["split_learning.encoder"]) == ("fedbone", "server")
    assert f"{path}: training.merging is called training.gradient_combination" in caplog.text


def test_serve_ort_training_python_that_is_not_there(tmp_path, capsys):
    words = ["--state", str(tmp_path), "--port", "0", "--ort-training-python", str(tmp_path / "none")]
    assert main(words) == USAGE
    assert "make venv-ort-training" in capsys.readouterr().err


def test_serve_state_folder_in_use(tmp_path, capsys):
    folder = StateFolder(tmp_path)
    assert main(["--state", str(tmp_path), "--port", "0"]) == UNAVAILABLE
    assert "another server" in capsys.readouterr().err
    folder.close()


def test_report_of_nothing(tmp_path, capsys):
    assert main(["report", "--state", str(tmp_path / "none")]) == BAD_INPUT
    assert main(["report", "--state", str(tmp_path)]) == BAD_INPUT
    assert "nothing to report" in capsys.readouterr().err


def test_serve_certificate_beside_another_broker_is_refused(tmp_path, capsys):
    files = ["--certificate", str(tmp_path / "c.pem"), "--key", str(tmp_path / "k.pem")]
    assert main(["--state", str(tmp_path / "state"), "--broker", "mqtt://127.0.0.1:1", *files]) == USAGE
    assert "with --broker leave them out" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_serve_certificate_that_cannot_be_used(tmp_path, capsys):
    arguments = ["--state", str(tmp_path / "state"), "--port", "0", "--certificate", str(tmp_path / "c.pem")]
    assert main(arguments) == USAGE
    assert "broker.certificate: for TLS the broker needs a key as well" in capsys.readouterr().err
    (tmp_path / "k.pem").write_text("no key")
    for text in (None, "no certificate"):
        if text is not None:
            (tmp_path / "c.pem").write_text(text)
        assert main([*arguments, "--key", str(tmp_path / "k.pem")]) == UNAVAILABLE
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "c.pem" in error
        assert error.count("\n") == 1


def test_device_that_is_stolen_is_revoked_and_replaced_by_commands(tmp_path, capsys):
    out, state = tmp_path / "agent.toml", ["--state", str(tmp_path / "state")]
    assert main(["enrol", "pi", "--out", str(out), *state]) == DONE
    first = out.read_text()
    assert main(["revoke", "pi", *state]) == DONE
    assert main(["devices", *state]) == DONE
    assert capsys.readouterr().out.splitlines()[-1] == "pi  revoked"
    assert main(["enrol", "pi", "--out", str(out), "--force", *state]) == DONE
    assert main(["devices", *state]) == DONE
    assert capsys.readouterr().out.splitlines()[-1] == "pi  enrolled, waits for its first message"
    assert not set(first.splitlines()[3:5]) & set(out.read_text().splitlines())  # neither token nor code
    assert main(["revoke", "other", *state]) == USAGE
    assert "'other' is not enrolled" in capsys.readouterr().err
