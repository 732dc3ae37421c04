import subprocess

import pytest

from devices.flashing.fat import Fat, FatUnusable


@pytest.mark.process
def test_write_makes_folders_and_reads_back(make_fat, sound, tmp_path):
    path = make_fat({"cmdline.txt": "before"})
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * 20_000)
    fat = Fat(path)
    files = {
        "cmdline.txt": b"after",
        "mas-edge/wheels/A+b_1-cp313.whl": big,
        "mas-edge/data/train/x.npy": b"1",
        "e": b"",
    }
    fat.write(files)
    assert fat.read("cmdline.txt") == b"after"
    assert fat.read("mas-edge/wheels/A+b_1-cp313.whl") == big.read_bytes()
    assert fat.exists("mas-edge")
    assert not fat.exists("mas-edge/nothing")
    sound(path)
    listed = subprocess.run(["mdir", "-b", "-s", "-i", path, "::/"], capture_output=True, text=True, check=True).stdout
    assert set(listed.split()) >= {f"::/{name}" for name in files}


@pytest.mark.process
def test_write_twice_leaves_one_file_and_a_sound_system(make_fat, sound):
    path = make_fat({})
    fat = Fat(path)
    free = fat.free_bytes()
    for _ in range(3):
        fat.write({"mas-edge/settings": b"x" * 100_000})
    assert free - fat.free_bytes() < 120_000
    sound(path)


@pytest.mark.process
def test_write_more_than_there_is_room_for_writes_nothing(make_fat, tmp_path):
    path = make_fat({}, mib=12)
    before = path.read_bytes()
    with pytest.raises(FatUnusable, match=r"has 11 MiB free, and the files need 12 MiB"):
        Fat(path).write({"one": b"1", "big": bytes(12_000_000)})
    assert path.read_bytes() == before


@pytest.mark.process
@pytest.mark.parametrize("name", ["../x", "a//b", "*", "a/?.txt", "", "/etc/passwd", "a\\b", "C:x", ".hidden"])
def test_write_name_that_is_none_is_refused(make_fat, name):
    with pytest.raises(FatUnusable, match="is no name for a file"):
        Fat(make_fat({})).write({name: b""})


@pytest.mark.process
def test_read_of_a_missing_file_is_one_sentence(make_fat):
    with pytest.raises(FatUnusable, match="the boot partition cannot be used: mtype: .*nothing"):
        Fat(make_fat({})).read("nothing")


@pytest.mark.process
def test_no_file_system_is_refused(tmp_path, make_fat):
    (tmp_path / "it").write_bytes(bytes(1 << 20))
    with pytest.raises(FatUnusable, match="cannot be used: mdir"):
        Fat(tmp_path / "it")


def test_without_mtools_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FatUnusable, match="install the package mtools"):
        Fat(tmp_path / "it")
