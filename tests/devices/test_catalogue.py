import json

import pytest

from devices.__main__ import main
from devices.profile import names


def test_list_has_a_line_for_each_board(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(names())
    assert "rpi5         Raspberry Pi 5 (trixie, bookworm)" in lines


def test_show_gives_each_fact_with_its_source_and_says_what_is_not_stated(capsys):
    assert main(["show", "rpi4"]) == 0
    out = capsys.readouterr().out
    assert "  memory: 1024 or 2048 or 4096 or 8192 MiB (Raspberry Pi 4 Model B product brief)\n" in out
    assert "  active: 3 W (Raspberry Pi documentation" in out
    assert "  modes: not stated\n" in out
    assert "first boot by cloud-init (Raspberry Pi OS release notes" in out


def test_show_jetson_says_how_it_is_flashed(capsys):
    assert main(["show", "orin-nano"]) == 0
    out = capsys.readouterr().out
    assert "  flashed by: ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1 " in out
    assert " -p '-c bootloader/generic/cfg/flash_t234_qspi.xml' " in out


def test_show_json(capsys):
    assert main(["show", "x86-64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["engines"]["value"] == ["portable", "ort_training"]


def test_show_unknown_board_is_one_sentence(capsys):
    assert main(["show", "rpi6"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no board 'rpi6': known are ")
    assert said.count("\n") == 1


def test_detect_another_root(board, capsys):
    folder = board.root / "proc/device-tree"
    folder.mkdir(parents=True)
    (folder / "compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    (folder / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    board.hwmon(0, "ina219", in1_input=5000, curr1_input=700, power1_input=3500000)
    assert main(["detect", "--root", str(board.root)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("rpi5: Raspberry Pi 5\n  model: Raspberry Pi 5 Model B Rev 1.0\n")
    assert "  device tree: raspberrypi,5-model-b, brcm,bcm2712\n" in out
    assert "  meter: hwmon" in out


def test_detect_json(board, capsys):
    assert main(["detect", "--root", str(board.root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["meter"] is None
    assert len(found["meter_reasons"]) == 4


def test_command_missing_is_wrong_usage():
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
