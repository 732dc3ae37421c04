from pathlib import Path

import pytest

from devices.meters.meter import MeterAbsent
from devices.meters.rapl import RaplMeter


def test_packages_and_memory_are_counted_and_parts_are_not(board):
    board.rapl("0", "package-0", 5_000_000)
    board.rapl("0:0", "core", 1)
    board.rapl("0:1", "uncore", 1)
    board.rapl("0:2", "dram", 2_000_000, 65_712_999_613)
    board.rapl("1", "package-1", 7_000_000)
    board.rapl("2", "psys", 99)
    meter = RaplMeter(board.root)
    assert meter.read() == (5.0, 2.0, 7.0)
    assert meter.facts.counter_ranges_j == (262143.32885, 65712.999613, 262143.32885)
    assert meter.facts.covers.startswith("package-0, dram, package-1;")
    (board.root / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("6000000\n")
    assert meter.read()[0] == 6.0
    meter.close()


def test_missing_range_is_32_bits(board):
    (board.rapl("0", "package-0", 1) / "max_energy_range_uj").unlink()
    assert RaplMeter(board.root).facts.counter_ranges_j == (4294.967296,)


def test_kernel_without_counters_says_so(board):
    board.write("sys/class/powercap/dtpm")
    with pytest.raises(MeterAbsent, match="no intel-rapl zone"):
        RaplMeter(board.root)


def test_zones_that_are_all_parts_say_so(board):
    board.rapl("0", "psys", 1)
    with pytest.raises(MeterAbsent, match="no zone is"):
        RaplMeter(board.root)


def test_counters_that_are_root_s_are_one_sentence(board, monkeypatch, open_files):
    """Permissions do not bind root, so the refusal is the operating system's call's own."""
    import os

    board.rapl("0", "package-0", 1)
    board.rapl("1", "package-1", 1)
    real = os.open

    def refuse(path, flags, *rest):
        if Path(path).parent.name == "intel-rapl:1":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest)

    before = open_files()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MeterAbsent, match=r"root alone.*intel-rapl:1/energy_uj") as caught:
        RaplMeter(board.root)
    assert "\n" not in str(caught.value)
    assert open_files() == before


def test_counter_without_a_file_says_so(board, open_files):
    (board.rapl("0", "package-0", 1) / "energy_uj").unlink()
    before = open_files()
    with pytest.raises(MeterAbsent, match="cannot be opened"):
        RaplMeter(board.root)
    assert open_files() == before


@pytest.mark.parametrize("content", ["", "many", "1.5e3"])
def test_counter_that_is_no_number_says_so(board, content):
    board.rapl("0", "package-0", content)
    with pytest.raises(MeterAbsent, match="number"):
        RaplMeter(board.root)


def test_counter_that_goes_bad_later_reads_none(board):
    folder = board.rapl("0", "package-0", 1)
    meter = RaplMeter(board.root)
    (folder / "energy_uj").write_text("?")
    assert meter.read() is None
