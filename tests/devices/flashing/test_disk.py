from pathlib import Path

import pytest

from devices.flashing.disk import TargetRefused, disk_facts, find_disk, refuse, whole_disks

GB = 10**9


@pytest.fixture
def system(board):
    """A computer with a system disk sda (two partitions) and a card sdb (one)."""
    for name, number, sectors, removable in (("sda", "8:0", 1 << 30, 0), ("sdb", "8:16", 62_500_000, 1)):
        board.write(f"sys/class/block/{name}", dev=number, size=sectors, removable=removable, ro=0)
        board.write(f"sys/class/block/{name}/device", model=f"model of {name} ")
    for disk, part, number in (("sda", "sda1", "8:1"), ("sda", "sda2", "8:2"), ("sdb", "sdb1", "8:17")):
        for folder in (f"sys/class/block/{disk}/{part}", f"sys/class/block/{part}"):
            board.write(folder, dev=number, partition=1, size=1000)
    board.write("sys/class/block/loop0", dev="7:0", size=0)
    board.mounts = lambda *pairs: board.write(
        "proc/self", mountinfo="\n".join(f"36 35 {number} / {place} rw - ext4 /dev/x rw" for number, place in pairs)
    )
    board.mounts(("8:1", "/"), ("8:2", "/home"))
    board.write("proc", swaps="Filename Type Size Used Priority")
    return board


def test_disk_facts_of_a_card(system):
    card = disk_facts("sdb", system.root)
    assert (card.model, card.size_bytes, card.is_removable, card.mounts) == ("model of sdb", 32 * GB, True, ())
    assert str(card) == "/dev/sdb (model of sdb, 32.0 GB, removable)"
    refuse(card, 3 * GB)


def test_disk_facts_of_a_partition_are_refused(system):
    with pytest.raises(TargetRefused, match="/dev/sdb1 is a partition: give the whole disk"):
        disk_facts("sdb1", system.root)


def test_refuse_the_system_disk(system):
    with pytest.raises(TargetRefused, match=r"/dev/sda .* is what this computer runs from \(/, /home\)"):
        refuse(disk_facts("sda", system.root), GB)


def test_refuse_a_disk_that_is_swapped_to(system):
    system.write("proc", swaps="Filename Type Size Used Priority\n/dev/sdb1 partition 1 0 -2")
    with pytest.raises(TargetRefused, match=r"what this computer runs from \(\[swap\]\)"):
        refuse(disk_facts("sdb", system.root), GB)


def test_refuse_a_mounted_disk_and_name_the_place(system):
    system.mounts(("8:1", "/"), ("8:17", r"/media/me/my\040card"))
    with pytest.raises(TargetRefused, match="is mounted at /media/me/my card: unmount it first"):
        refuse(disk_facts("sdb", system.root), GB)


def test_refuse_a_disk_that_something_is_built_upon(system):
    system.write("sys/class/block/sdb/sdb1/holders/dm-0", dev="253:0")
    with pytest.raises(TargetRefused, match="is part of dm-0"):
        refuse(disk_facts("sdb", system.root), GB)


def test_refuse_a_write_protected_disk(system):
    system.write("sys/class/block/sdb", ro=1)
    with pytest.raises(TargetRefused, match="write-protected"):
        refuse(disk_facts("sdb", system.root), GB)


def test_refuse_an_empty_reader(system):
    system.write("sys/class/block/sdb", size=0)
    with pytest.raises(TargetRefused, match="put a card into the reader"):
        refuse(disk_facts("sdb", system.root), GB)


def test_refuse_a_disk_that_is_too_small(system):
    with pytest.raises(TargetRefused, match=r"too small: the image needs 40.0 GB"):
        refuse(disk_facts("sdb", system.root), 40 * GB)


def test_disk_facts_where_mounts_cannot_be_seen_are_refused(system):
    (system.root / "proc/self/mountinfo").unlink()
    with pytest.raises(TargetRefused, match="the list of mounts cannot be read"):
        disk_facts("sdb", system.root)


def test_disk_facts_without_swaps_file(system):
    (system.root / "proc/swaps").unlink()
    assert disk_facts("sdb", system.root).mounts == ()


def test_whole_disks_have_a_size_and_are_no_partitions(system):
    assert whole_disks(system.root) == ["sda", "sdb"]


def test_find_disk_absent_names_those_that_are_there(system, tmp_path):
    with pytest.raises(TargetRefused, match=r"there is no disk .*nothing \(No such file.*known are /dev/sda, /dev/sdb"):
        find_disk(tmp_path / "nothing", system.root)


@pytest.mark.parametrize("name", ["/dev/null", __file__])
def test_find_disk_of_what_is_no_block_device_is_refused(system, name):
    with pytest.raises(TargetRefused, match="is no disk"):
        find_disk(Path(name), system.root)


def test_find_disk_of_this_computer(tmp_path):
    """A real block device, looked at and never opened."""
    names = [name for name in whole_disks() if Path("/dev", name).is_block_device()]
    if not names:
        pytest.skip("this machine shows no block device")
    path = Path("/dev", names[0])
    assert find_disk(path).name == names[0]
    with pytest.raises(TargetRefused, match="the kernel lists no disk"):
        find_disk(path, tmp_path)
