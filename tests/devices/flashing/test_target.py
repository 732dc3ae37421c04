import os
from pathlib import Path

import pytest

from devices.flashing.disk import TargetRefused
from devices.flashing.target import DiskTarget, FileTarget, WriteFailed, open_target


def test_file_target_appears_whole_and_for_its_owner_alone(tmp_path):
    path = tmp_path / "out.img"
    target = open_target(path)
    target.check(1000)
    with target.open() as descriptor:
        os.write(descriptor, b"hello")
        assert not path.exists()
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_file_target_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.img"
    path.write_text("before")
    target = FileTarget(path)
    assert target.describe() == f"{path} (a file, which is replaced)"
    with pytest.raises(WriteFailed, match="No space left on device; .*out.img is as it was before"), target.open():
        raise OSError(28, "No space left on device")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_file_target_stopped_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), FileTarget(tmp_path / "out.img").open():
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_file_target_disk_full_is_refused_before_anything(tmp_path):
    with pytest.raises(TargetRefused, match=r"GB free and the image needs 1000000000.0 GB"):
        FileTarget(tmp_path / "out.img").check(10**18)
    assert list(tmp_path.iterdir()) == []


def test_file_target_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(TargetRefused, match="there is no folder .*nowhere for out.img"):
        open_target(tmp_path / "nowhere/out.img")


def test_file_target_that_is_a_folder(tmp_path):
    with pytest.raises(TargetRefused, match="is a folder: give a file"):
        open_target(tmp_path)


def test_open_target_never_makes_a_file_in_dev():
    with pytest.raises(TargetRefused, match="there is no disk /dev/no-such-disk"):
        open_target(Path("/dev/no-such-disk"))


@pytest.mark.parametrize("name", ["/dev/null", "/dev/../dev/zero"])
def test_open_target_of_another_device(name):
    with pytest.raises(TargetRefused, match="is no disk"):
        open_target(Path(name))


def test_open_target_of_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TargetRefused, match="neither a disk nor a file"):
        open_target(tmp_path / "pipe")


def test_disk_target_says_what_is_lost_and_refuses_what_is_in_use():
    names = [n for n in ("vda", "sda", "nvme0n1", "mmcblk0") if Path("/dev", n).is_block_device()]
    if not names:
        pytest.skip("this machine shows no disk")
    target = DiskTarget(Path("/dev", names[0]))
    assert target.describe().endswith("all that is on it is lost")
    assert target.state_after_failure() == f"/dev/{names[0]} is not usable and will not boot"
    with pytest.raises(TargetRefused):
        target.check(10**18)
