"""What a federation costs: real processes whose sensors are files."""

import re
import time

import pytest

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.workstation


class Board:
    """The files of a board with an INA226 in its feed and a processor of 61 °C; `watts` is what it draws."""

    def __init__(self, root):
        self.root = root
        self.chip = root / "sys/class/hwmon/hwmon0"
        for folder, files in (
            (self.chip, {"name": "ina226"}),
            (root / "sys/class/thermal/thermal_zone0", {"type": "cpu-thermal", "temp": 61000}),
            (root / "sys/devices/platform/soc/soc:firmware", {"get_throttled": "1"}),
        ):
            folder.mkdir(parents=True)
            for name, text in files.items():
                (folder / name).write_text(f"{text}\n")
        self.watts(5.0)

    def watts(self, power_w):
        """Written in place, as the kernel's files change under those who have them open."""
        with (self.chip / "power1_input").open("w") as file:
            file.write(f"{power_w * 1e6:.0f}\n")


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path / "board")


def test_report_has_the_joules_of_the_device_that_measures_and_none_of_the_other(site, board):
    began_s = time.monotonic()
    server = site.serve(min_devices=2, quorum=2, epochs=30)
    metered = site.device("metered", meter="auto", meter_root=board.root, meter_idle_s=1.0)
    bare = site.device("bare", 6, meter="none")
    site.ends(server, metered, bare)
    lasted_s = time.monotonic() - began_s
    assert "energy is measured by hwmon:ina226" in metered.said
    assert "the idle board: 5.00 W" in metered.said
    report = site.report()
    spent_s = 0.0
    for row in report["rounds"]:
        own, other = row["energy_by_device"]["metered"], row["energy_by_device"]["bare"]
        assert (own["source"], own["estimated"], own["idle_w"]) == ("hwmon:ina226", False, pytest.approx(5.0))
        assert own["energy_j"] == pytest.approx(5.0 * own["seconds"], rel=0.01)
        assert own["measured_s"] == pytest.approx(own["seconds"], rel=0.05)
        assert own["uncertainty_j"] >= 0.02 * own["energy_j"]
        assert {"download", "train", "upload"} <= set(own["phases"])
        assert ("probe" in own["phases"]) == (row["round"] == 1)
        for phase in own["phases"].values():
            assert phase["energy_j"] is None or phase["energy_j"] == pytest.approx(5.0 * phase["seconds"], rel=0.01)
        assert own["phases"]["train"]["energy_j"] > 0
        assert own["temperature_max_c"] == 61.0
        assert own["throttled"] == ["under_voltage"]
        assert (other["source"], other["energy_j"], other["idle_w"]) == (None, None, None)
        assert other["phases"]["train"]["seconds"] > 0
        found = row["energy"]
        assert found["energy_j"] == own["energy_j"]
        assert (found["measured"], found["plans"], found["partial"], found["estimated"]) == (1, 2, True, False)
        assert found["phases"]["train"]["energy_j"] == own["phases"]["train"]["energy_j"]
        assert (found["temperature_max_c"], found["throttled"]) == (61.0, ["under_voltage"])
        spent_s += own["seconds"]
    energy = report["energy"]
    assert spent_s < lasted_s
    assert 5.0 * spent_s < energy["total"]["energy_j"] < 5.05 * lasted_s  # the measuring rounds come on top
    assert energy["total"]["energy_j"] == pytest.approx(sum(part["energy_j"] for part in energy["groups"].values()))
    assert (energy["total"]["measured"] * 2, energy["total"]["partial"]) == (energy["total"]["plans"], True)
    assert energy["total"]["phases"]["evaluate"]["energy_j"] > 0
    page = (site.state / "report" / "report.html").read_text().replace("\n", "")  # a cell may end its line
    assert re.search(r"≥ [\d.]+ J<small>\d+ of \d+ measured", page)
    assert "hwmon:ina226" in page
    assert "no meter" in page
    assert "under_voltage" in page
    lines = [line for line in page.split("<tr>") if "no meter" in line]
    assert len(lines) == len(report["rounds"])
    assert not any(re.search(r"[\d.]+ [JW]\b", line) for line in lines)


def test_report_has_what_a_device_spent_before_it_was_killed_in_the_middle_of_a_round(site, board):
    """5 W before SIGKILL and 1 W after it: so the report says by itself how much of the time before is in it."""
    server = site.serve(min_devices=1, quorum=1, epochs=300, merged_rounds=1, probe_rounds=1, groups=1)
    device = site.device("kitchen", meter="hwmon", meter_root=board.root)
    site.until(device, "round 1: train")
    time.sleep(3.0)  # of which the meter has 15 J, most of them spent on training
    assert device.process.poll() is None
    device.kill()
    board.watts(1.0)
    time.sleep(0.5)
    device.start()
    site.ends(server, device)
    assert "round 1: done" in device.said
    assert device.said.count("round 1: train") == 2
    energy = site.report()["rounds"][0]["energy_by_device"]["kitchen"]
    before_s = (energy["energy_j"] - 1.0 * energy["seconds"]) / 4.0
    assert 2.9 < before_s < energy["seconds"]
    assert energy["phases"]["train"]["energy_j"] > 5.0
    assert energy["phases"]["upload"]["energy_j"] == pytest.approx(energy["phases"]["upload"]["seconds"], rel=0.02)


def test_estimate_is_labelled_in_the_report(site):
    server = site.serve(min_devices=1, quorum=1, merged_rounds=1, probe_rounds=1, groups=1)
    device = site.device("alone", meter="model:2,6")
    site.ends(server, device)
    assert "energy is estimated by model" in device.said
    (row,) = site.report()["rounds"]
    own = row["energy_by_device"]["alone"]
    assert (own["source"], own["estimated"]) == ("model", True)
    assert 2.0 * own["seconds"] <= own["energy_j"] <= 6.0 * own["seconds"]
    assert row["energy"]["estimated_j"] == row["energy"]["energy_j"] == own["energy_j"]
    page = (site.state / "report" / "report.html").read_text().replace("\n", "")  # a cell may end its line
    figures = re.findall(r">(?:≥ )?[\d.]+ [JW]<.{40}", page)
    assert len(figures) > 10
    assert all("estimated" in figure for figure in figures)
