import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devices.cli.run import UsageError
from devices.meters import Found
from edge_runtime.energy.command import add_arguments, run, split
from edge_runtime.energy.meter import read_password
from edge_runtime.wire.link import Connected
from edge_runtime.wire.mqtt import MqttLink

ROOT = Path(__file__).parents[3]
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
PYTHON = sys.executable


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def opened(meter, *reasons):
    return lambda _source: Found(meter=meter, reasons=reasons)


def energy(*words, **options):
    return subprocess.run(
        [PYTHON, "-m", "edge_runtime", "energy", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )


def test_words_after_the_dashes_are_the_command():
    assert split(["energy", "--json", "--", "ls", "--", "-l"]) == (["energy", "--json"], ["ls", "--", "-l"])
    assert split(["energy"]) == (["energy"], [])


def test_idle_machine_is_measured(meter, health, capsys):
    code = run(arguments("--seconds", "0.3", "--json"), [], opened(meter), health)
    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["energy_j"] == pytest.approx(5.0 * found["seconds"], rel=1e-3)
    assert (found["mean_w"], found["idle_w"], found["source"], found["estimated"]) == (
        pytest.approx(5.0),
        pytest.approx(5.0),
        "fake",
        False,
    )
    assert (found["exit_code"], found["command"], found["temperature_max_c"]) == (None, [], 50.0)
    assert meter.closed


@pytest.mark.process
def test_command_is_measured_beside_the_idle_machine(meter, health, capfd):
    words = [PYTHON, "-c", "import time; print('hello'); time.sleep(0.3); raise SystemExit(7)"]
    code = run(arguments("--seconds", "0.2", "--json"), words, opened(meter), health)
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert (code, found["exit_code"], found["command"]) == (7, 7, words)
    assert "hello" in err
    assert found["seconds"] >= 0.3
    assert found["above_idle_j"] == pytest.approx(0, abs=0.01)


@pytest.mark.process
def test_words_for_people_go_beside_the_command_s_output(meter, health, capfd):
    health_now = lambda: health(temperature_c=81.0, throttled=("throttled",))  # noqa: E731
    code = run(
        arguments("--seconds", "0.1"),
        [PYTHON, "-c", "print('hello')"],
        opened(meter),
        health_now,
    )
    out, err = capfd.readouterr()
    assert (code, out) == (0, "hello\n")
    for words in ("J (±", "(fake)", "J above idle", "81.0 °C", "held back by: throttled", "covers all of it"):
        assert words in err


def test_nothing_that_measures_is_null_with_reasons_and_no_failure(health, capsys):
    code = run(arguments("--seconds", "0.1", "--json"), [], opened(None, "rapl: not here"), health)
    found = json.loads(capsys.readouterr().out)
    assert (code, found["energy_j"], found["mean_w"], found["source"]) == (0, None, None, None)
    assert found["reasons"] == ["rapl: not here"]
    assert found["seconds"] >= 0.1
    run(arguments("--seconds", "0.1"), [], opened(None, "rapl: not here"), health)
    assert "no usable meter here\n  rapl: not here" in capsys.readouterr().out


@pytest.mark.process
def test_command_runs_where_nothing_measures(health, capfd):
    assert run(arguments("--seconds", "0"), [PYTHON, "-c", "exit(3)"], opened(None, "no"), health) == 3


def test_meter_that_stops_is_said(meter, health, capsys):
    meter.value = None
    run(arguments("--seconds", "0.1"), [], opened(meter), health)
    assert "too few readings" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e9", "0"])
def test_seconds_that_make_no_sense_are_refused(meter, health, capsys, seconds):
    assert run(arguments(f"--seconds={seconds}"), [], opened(meter), health) == 2
    assert "--seconds" in capsys.readouterr().err


@pytest.mark.process
def test_source_that_is_none_is_one_sentence():
    done = energy("--source", "sun")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'sun' is no source" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["no-such-command"], 127, "no-such-command: not found"),
        (["/"], 126, "/: Permission denied"),
        ([PYTHON, "-c", "import os; os.kill(os.getpid(), 9)"], 137, ""),
    ],
)
def test_command_that_fails_has_a_shell_s_exit_code(meter, health, capfd, words, code, said):
    assert run(arguments("--seconds", "0"), words, opened(meter), health) == code
    assert said in capfd.readouterr().err


@pytest.mark.process
def test_command_line_works_from_end_to_end():
    done = energy("--source", "model:2,6", "--seconds", "0.3", "--json", "--", PYTHON, "-c", "exit(4)")
    found = json.loads(done.stdout)
    assert (done.returncode, found["exit_code"], found["estimated"], found["source"]) == (4, 4, True, "model")
    assert 0 < found["energy_j"] < 6.1 * found["seconds"]


@pytest.mark.process
def test_sigterm_goes_to_the_command_and_its_energy_is_reported(tmp_path):
    ready = tmp_path / "ready"
    child = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(100)"
    words = ["energy", "--source", "model:2,6", "--seconds", "0", "--json", "--", PYTHON, "-c", child]
    process = subprocess.Popen(
        [PYTHON, "-m", "edge_runtime", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while not ready.exists():
        time.sleep(0.02)
    process.terminate()
    found = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == found["exit_code"] == 128 + signal.SIGTERM
    assert found["energy_j"] > 0


def test_ctrl_c_while_the_idle_machine_is_measured_ends_quietly(meter, capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert run(arguments(), ["never-run"], opened(meter), interrupted) == 130
    assert capsys.readouterr() == ("", "stopped\n")
    assert meter.closed


def test_password_is_read_from_a_file(tmp_path):
    (tmp_path / "password").write_text("secret\n")
    assert read_password(tmp_path / "password") == "secret"
    assert read_password(None) == ""
    with pytest.raises(UsageError, match="cannot be read"):
        read_password(tmp_path / "none")


@pytest.fixture
def broker(tmp_path):
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([MOSQUITTO, "-c", str(tmp_path / "conf")], stderr=subprocess.DEVNULL)
    yield f"mqtt://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.mark.process
def test_plug_on_a_real_broker_is_measured(broker):
    link = MqttLink(broker, client_id="plug", username="plug", password="", clean_session=True)
    while not isinstance(link.receive(60), Connected):
        pass
    link.publish("tele/desk/SENSOR", b'{"ENERGY":{"Power":7.5}}', retain=True)
    time.sleep(0.3)
    done = energy("--source", f"{broker}/tele/desk/SENSOR", "--seconds", "1.5", "--json")
    link.close()
    found = json.loads(done.stdout)
    assert (found["source"], found["mean_w"]) == ("mqtt:tele/desk/SENSOR", pytest.approx(7.5))
    assert found["energy_j"] == pytest.approx(7.5 * found["seconds"], rel=0.01)
