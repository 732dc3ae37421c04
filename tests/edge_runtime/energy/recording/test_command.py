import io
import json
import queue
import threading
from types import SimpleNamespace

import pytest

from edge_runtime.__main__ import main
from edge_runtime.energy.recording.command import record


class Meter:
    """Gives what it was told to, each at the next tenth of a second."""

    def __init__(self, *values, ranges=None):
        self.facts = SimpleNamespace(
            rate_hz=10.0, counter_ranges_j=ranges, source="fake", covers="all", estimated=False
        )
        self._values = list(values)

    def read(self):
        return self._values.pop(0) if len(self._values) > 1 else self._values[0]


class Clock:
    """Moves by what is waited, and a thousandth at each look."""

    now = 50.0

    def __call__(self):
        self.now += 0.001
        return self.now

    def wait(self, seconds):
        self.now += seconds


def run(meter, **changes):
    clock = Clock()
    stop = SimpleNamespace(is_set=lambda: False, wait=clock.wait)
    given = {"idle_s": 1.0, "seconds": 2.0, "marks": queue.SimpleQueue(), "stop": stop, "clock": clock}
    seen = []
    rows = record(meter, lambda row, _unix_s: seen.append(row), **given | changes)
    assert seen == rows
    return rows


def test_record_idle_then_work_at_the_meter_s_rate():
    rows = run(Meter((2.0,)))
    assert {row.mark for row in rows} == {"idle", "work"}
    assert len(rows) == pytest.approx(31, abs=1)
    assert rows[-1].seconds == pytest.approx(3.0, abs=0.1)
    assert next(row.seconds for row in rows if row.mark == "work") == pytest.approx(1.0, abs=0.1)


def test_record_marks_begin_segments_and_failed_readings_are_left_out():
    marks = queue.SimpleQueue()
    marks.put("camera on")
    rows = run(Meter((2.0,), None, (3.0,)), marks=marks, idle_s=0.0)
    assert {row.mark for row in rows} == {"camera on"}
    assert rows[1].watts == 3.0
    assert rows[1].seconds - rows[0].seconds == pytest.approx(0.2, abs=0.01)


def test_record_counters():
    rows = run(Meter(*[(n * 0.5,) for n in range(100)], ranges=(1000.0,)))
    assert rows[5].watts == pytest.approx(5.0, rel=0.05)


def test_record_stops_when_it_is_told_to():
    stop = threading.Event()
    stop.set()
    assert run(Meter((1.0,)), stop=stop) == []


@pytest.fixture
def pi(board, monkeypatch):
    """A Raspberry Pi 4 with an INA219 that the kernel serves."""
    folder = board.root / "proc/device-tree"
    folder.mkdir(parents=True)
    (folder / "compatible").write_bytes(b"raspberrypi,4-model-b\0brcm,bcm2711\0")
    board.hwmon(0, "ina219", in1_input=5000, curr1_input=700, power1_input=3500000)
    board.write("sys/class/thermal/thermal_zone0", type="cpu-thermal", temp=55000)
    monkeypatch.setattr("sys.stdin", io.StringIO("camera on\n"))
    return board


def test_meter_records_into_csv_and_sums_up(pi, tmp_path, capsys):
    out = tmp_path / "out.csv"
    words = ["energy", "record", "--root", str(pi.root), "--idle", "0.3", "--seconds", "0.3", "--csv", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("hwmon")
    assert "3.500 W (3.50 to 3.50 W)" in said
    lines = out.read_text().splitlines()
    assert lines[0] == "seconds,unix_s,watts,mark,source,temperature_c,cpu_mhz,throttled"
    assert ",3.5000,camera on," in lines[-1]
    assert ",55.0,," in lines[1]
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err


def test_meter_json_with_a_calibration(pi, tmp_path, capsys):
    words = ["energy", "record", "--root", str(pi.root), "--idle", "0", "--seconds", "0.2", "--json"]
    assert main([*words, "--csv", str(tmp_path / "a.csv")]) == 0
    source = json.loads(capsys.readouterr().out)["source"]
    calibration = tmp_path / "c.toml"
    calibration.write_text(f'source = "{source}"\ngain = 1.1\noffset_w = 0.5\nresidual_w = 0.0\n')
    assert main([*words, "--csv", str(tmp_path / "b.csv"), "--calibration", str(calibration)]) == 0
    assert json.loads(capsys.readouterr().out)["segments"][0]["mean_w"] == pytest.approx(3.5 * 1.1 + 0.5)
    calibration.write_text(calibration.read_text().replace(source, "pmic"))
    assert main([*words, "--csv", str(tmp_path / "c.csv"), "--calibration", str(calibration)]) == 2
    assert "is for pmic, and this meter is" in capsys.readouterr().err


def test_meter_where_nothing_measures_says_what_helps(board, tmp_path, capsys):
    words = ["--root", str(board.root), "--csv", str(tmp_path / "a.csv")]
    assert main(["energy", "record", "--board", "rpi4", *words]) == 3
    err = capsys.readouterr().err
    assert "--source i2c:ina219@0x40,bus=1,shunt=0.1, with a plug: --source mqtt://" in err
    assert main(["energy", "record", "--board", "x86-64", *words]) == 3
    assert "docs/boards.md shows how a sensor is wired" in capsys.readouterr().err
    assert main(["energy", "record", "--source", "pmic", *words]) == 3
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--seconds", "0"], 2, "--seconds must be between 0.1"),
        (["--idle", "nan"], 2, "--idle must be between 0 "),
        (["--source", "magic"], 2, "is no source of energy figures"),
        (["--board", "rpi6"], 2, "there is no board 'rpi6'"),
        (["--calibration", "/nowhere"], 2, "/nowhere cannot be read"),
    ],
)
def test_meter_wrong_input_is_one_sentence(board, tmp_path, words, code, said, capsys):
    assert main(["energy", "record", "--root", str(board.root), "--csv", str(tmp_path / "a.csv"), *words]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.workstation
def test_meter_plot(pi, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = [
        "energy",
        "record",
        "--root",
        str(pi.root),
        "--idle",
        "0.2",
        "--seconds",
        "0.2",
        "--csv",
        str(tmp_path / "a.csv"),
    ]
    assert main([*words, "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    words[-1] = str(tmp_path / "b.csv")
    assert main([*words, "--plot", str(tmp_path / "a.tiddlywinks")]) == 3
    assert "cannot be drawn" in capsys.readouterr().err


def recording(path, watts, source="i2c:ina219"):
    lines = [f"{n / 10},0,{watts},work,{source},,," for n in range(20)]
    path.write_text("\n".join(["seconds,unix_s,watts,mark,source,temperature_c,cpu_mhz,throttled", *lines]) + "\n")
    return path


def test_calibrate_of_two_loads(tmp_path, capsys):
    low, high = recording(tmp_path / "low.csv", 2.5), recording(tmp_path / "high.csv", 6.0)
    out = tmp_path / "c.toml"
    assert main(["energy", "calibrate", f"2.75={low}", f"6.60={high}", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "i2c:ina219: true watts = 1.1000 × reading +0.000 W, within 0.000 W" in said
    assert "divide the shunt that you state by 1.1000" in said
    assert "gain = 1.100000" in out.read_text()


@pytest.mark.parametrize(
    ("loads", "said"),
    [
        (["soon=low.csv", "2=high.csv"], "'soon=low.csv' is no load: write WATTS=FILE.csv"),
        (["2", "3=high.csv"], "'2' is no load|cannot be read"),
        (["-1=low.csv", "6=high.csv"], "is no load|unrecognized|expected"),
        (["2=low.csv"], "two known loads"),
        (["2=low.csv", "6=other.csv"], "are of different meters: i2c:ina219, pmic"),
    ],
)
def test_calibrate_wrong_input_is_one_sentence(tmp_path, loads, said, capsys, monkeypatch):
    import re

    monkeypatch.chdir(tmp_path)
    recording(tmp_path / "low.csv", 2.5)
    recording(tmp_path / "high.csv", 6.0)
    recording(tmp_path / "other.csv", 6.0, "pmic")
    try:
        assert main(["energy", "calibrate", *loads, "--out", "c.toml"]) == 2
    except SystemExit as exc:
        assert exc.code == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "c.toml").exists()
