import json
from pathlib import Path

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.__main__ import main
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


def test_enrol_with_what_the_device_needs(tmp_path):
    out = tmp_path / "agent.toml"
    more = ["--threads", "2", "--ca-file", "ca.pem", "--url", "mqtts://server.lan"]
    assert main(["enrol", "pi", "--out", str(out), "--state", str(tmp_path / "state"), *more]) == DONE
    assert {'url = "mqtts://server.lan"', "threads = 2", 'ca_file = "ca.pem"'} < set(out.read_text().splitlines())


def test_serve_bad_settings(tmp_path, capsys):
    assert main(["--state", str(tmp_path), "--lr", "-1"]) == USAGE
    assert "lr" in capsys.readouterr().err
    assert main(["--state", str(tmp_path), "--task-weights", "depth=-1"]) == USAGE
    assert "task_weights" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["--state", str(tmp_path), "--optimizer", "adam"])
    assert ended.value.code == USAGE
    assert "choose from 'sgd', 'adamw'" in capsys.readouterr().err.replace("sgd, adamw", "'sgd', 'adamw'")
    with pytest.raises(SystemExit):
        main(["--task-weights", "depth"])
    assert "--task-weights" in capsys.readouterr().err
    assert main(["--state", str(tmp_path), "--bundle", str(tmp_path / "none"), "--port", "0"]) == BAD_INPUT
    assert "not a bundle" in capsys.readouterr().err


def test_serve_official_python_that_is_not_there(tmp_path, capsys):
    words = ["--state", str(tmp_path), "--port", "0", "--official-python", str(tmp_path / "none")]
    assert main(words) == USAGE
    assert "make venv-official" in capsys.readouterr().err


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
    assert "certificate: for TLS the broker needs a key as well" in capsys.readouterr().err
    (tmp_path / "k.pem").write_text("no key")
    for text in (None, "no certificate"):
        if text is not None:
            (tmp_path / "c.pem").write_text(text)
        assert main([*arguments, "--key", str(tmp_path / "k.pem")]) == UNAVAILABLE
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "c.pem" in error
        assert error.count("\n") == 1
