import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.__main__ import main

ROOT = Path(__file__).parents[2]


def test_without_a_command_the_commands_are_named(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "train", "predict", "datasets", "energy"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"python -m edge_runtime {command}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["train"], ["predict", "--model", "m"], ["train", "--bundle"], ["fly"]])
def test_wrong_command_line_ends_with_two(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.parametrize("words", [["--help"], ["datasets", "--help"], ["run", "--help"], ["energy", "--help"]])
def test_commands_that_do_not_compute_do_not_load_the_engine(words):
    script = f"""
import sys
from edge_runtime.__main__ import main
try:
    main({words!r})
except SystemExit:
    pass
assert "onnxruntime" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_run_without_a_configuration_says_so(tmp_path, capsys):
    assert main(["run", "--config", str(tmp_path / "agent.toml")]) != 0
    assert "agent.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("meter", "code", "words"),
    [
        ("sun", 2, "agent.toml: meter: 'sun' is no source of energy figures"),
        ("mqtt://", 2, "agent.toml: meter: 'mqtt://' names no plug"),
        ("model:9,1", 2, "agent.toml: meter: a model needs"),
        ("rapl", 4, "the meter rapl cannot be used: rapl: this kernel offers no energy counters"),
        ("hwmon:ina226", 4, "the meter hwmon:ina226 cannot be used: hwmon: no sensor ina226"),
    ],
)
def test_run_with_a_meter_that_cannot_be_opened_says_so(tmp_path, capsys, meter, code, words):
    pytest.importorskip("onnxruntime")
    config = tmp_path / "agent.toml"
    config.write_text(
        f'device = "a"\nfederation = "home"\nurl = "mqtt://127.0.0.1:1"\ntoken = "t"\n'
        f'code = "{"0" * 32}"\nserver_key = "{"a" * 64}"\n'
        f'data = "{ROOT / "tests" / "fixtures" / "data"}"\nstate = "state"\nmeter = "auto"\nmeter_root = "none"\n'
    )
    config.chmod(0o600)
    assert main(["run", "--config", str(config), "--meter", meter]) == code
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert words in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("gain = 1", "is no calibration"),
        ('source = "rapl"\ngain = 1.1\noffset_w = 0.0\nresidual_w = 0.0\n', "is for rapl, and this meter is model"),
    ],
)
def test_run_with_a_calibration_that_is_none_of_its_meter_says_so(tmp_path, capsys, content, words):
    pytest.importorskip("onnxruntime")
    config = tmp_path / "agent.toml"
    config.write_text(
        f'device = "a"\nfederation = "home"\nurl = "mqtt://127.0.0.1:1"\ntoken = "t"\n'
        f'code = "{"0" * 32}"\nserver_key = "{"a" * 64}"\n'
        f'data = "{ROOT / "tests" / "fixtures" / "data"}"\nstate = "state"\nmeter = "model:2,6"\n'
        'meter_calibration = "true.toml"\n'
    )
    config.chmod(0o600)
    if content is not None:
        (tmp_path / "true.toml").write_text(content)
    assert main(["run", "--config", str(config)]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "agent.toml: meter_calibration: " in line
    assert words in line


def test_agent_s_meter_is_made_true_by_its_calibration(tmp_path):
    from edge_runtime.__main__ import _account
    from edge_runtime.agent.config import read

    config = tmp_path / "agent.toml"
    config.write_text(
        f'device = "a"\nfederation = "home"\nurl = "mqtt://127.0.0.1:1"\ntoken = "t"\n'
        f'code = "{"0" * 32}"\nserver_key = "{"a" * 64}"\n'
        'data = "data"\nstate = "state"\nmeter = "hwmon"\nmeter_root = "board"\nmeter_calibration = "true.toml"\n'
    )
    config.chmod(0o600)
    chip = tmp_path / "board/sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina226\n")
    (chip / "power1_input").write_text("5000000\n")
    (tmp_path / "state").mkdir()
    (tmp_path / "true.toml").write_text('source = "hwmon:ina226"\ngain = 1.2\noffset_w = -1.0\nresidual_w = 0.0\n')
    with _account(read(config)) as account:
        assert account.source == "hwmon:ina226 (calibrated)"
        assert account.measure_idle(0.5) == pytest.approx(5.0 * 1.2 - 1.0)
