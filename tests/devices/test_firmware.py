import struct

import pytest

from devices.firmware import FirmwareSilent, answer, open_firmware, question


def test_board_without_firmware_says_so(board):
    with pytest.raises(FirmwareSilent, match="vcgencmd"):
        open_firmware(board.root)


def test_plain_file_is_no_mailbox(board):
    board.write("dev", vcio="")
    with pytest.raises(FirmwareSilent):
        open_firmware(board.root)


@pytest.mark.process
def test_device_that_is_no_mailbox_is_passed_over_and_closed(board, open_files):
    """/dev/null is a character device that takes no request; the program is asked instead."""
    board.write("dev")
    (board.root / "dev/vcio").symlink_to("/dev/null")
    board.vcgencmd('version) echo "2025";;')
    before = open_files()
    assert open_firmware(board.root)("version") == "2025\n"
    assert open_files() == before


@pytest.mark.process
def test_program_answers(board):
    board.vcgencmd('get_throttled) echo "throttled=0x0";;')
    assert open_firmware(board.root)("get_throttled") == "throttled=0x0\n"


@pytest.mark.process
def test_program_that_fails_is_silent_with_its_reason(board):
    board.vcgencmd('*) echo "VCHI initialization failed" >&2; exit 255;;')
    with pytest.raises(FirmwareSilent, match=r"VCHI initialization failed.*group video"):
        open_firmware(board.root)("get_throttled")


@pytest.mark.process
def test_program_that_fails_without_a_word_is_silent(board):
    board.vcgencmd("*) exit 3;;")
    with pytest.raises(FirmwareSilent, match="3"):
        open_firmware(board.root)("get_throttled")


@pytest.mark.process
def test_program_that_hangs_is_silent(board):
    board.vcgencmd("*) exec sleep 60;;")
    with pytest.raises(FirmwareSilent, match="took over"):
        open_firmware(board.root)("get_throttled")


@pytest.mark.process
def test_program_that_cannot_run_is_silent(board):
    board.vcgencmd("").chmod(0o644)
    with pytest.raises(FirmwareSilent, match="cannot be run"):
        open_firmware(board.root)("get_throttled")


def test_mailbox_s_buffer_is_as_the_kernel_takes_it():
    buffer = question("pmic_read_adc")
    words = struct.unpack_from("=6I", buffer)
    assert words == (len(buffer), 0, 0x30080, 4096, 0, 0)
    assert buffer[24:38] == b"pmic_read_adc\0"
    assert buffer[-4:] == bytes(4)
    assert len(buffer) == 24 + 4096 + 4
    assert answer(buffer) == "pmic_read_adc"


def test_command_longer_than_the_buffer_is_refused():
    with pytest.raises(ValueError, match="too long"):
        question("x" * 4096)


def test_answer_is_text_whatever_comes():
    assert answer(bytes(24) + b"throttled=\xff\0junk") == "throttled=\ufffd"
    assert answer(b"") == ""
