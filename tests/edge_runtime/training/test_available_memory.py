import pytest

from edge_runtime.training.available_memory import RESERVE_BYTES, available_bytes, default_budget, group_limit_bytes

MIB = 2**20


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "proc/meminfo", f"MemTotal: {4096 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {2048 * 1024} kB\n")
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_available_is_what_the_system_says(root):
    assert available_bytes(root) == 2048 * MIB


def test_available_of_a_group_of_version_2_and_those_above_it(root):
    write(root / "proc/self/cgroup", "0::/system.slice/edge.service\n")
    top = root / "sys/fs/cgroup"
    write(top / "system.slice/edge.service/memory.max", "max\n")
    write(top / "system.slice/edge.service/memory.current", "5\n")
    assert available_bytes(root) == 2048 * MIB
    write(top / "system.slice/memory.max", f"{500 * MIB}\n")
    write(top / "system.slice/memory.current", f"{100 * MIB}\n")
    assert available_bytes(root) == 400 * MIB
    write(top / "system.slice/edge.service/memory.max", "3\n")
    assert available_bytes(root) == 0


def test_available_of_a_group_of_version_1(root):
    write(root / "proc/self/cgroup", "3:cpu,cpuacct:/x\n2:memory:/board\n")
    place = root / "sys/fs/cgroup/memory/board"
    write(place / "memory.limit_in_bytes", f"{2**63 - 4096}\n")
    write(place / "memory.usage_in_bytes", "1\n")
    assert available_bytes(root) == 2048 * MIB
    write(place / "memory.limit_in_bytes", f"{300 * MIB}\n")
    assert available_bytes(root) == 300 * MIB - 1


def test_default_budget_leaves_a_reserve(root):
    assert default_budget(50 * MIB, root) == 2098 * MIB - int(0.1 * 4096 * MIB)
    write(root / "proc/meminfo", f"MemTotal: {512 * 1024} kB\nMemAvailable: {300 * 1024} kB\n")
    assert default_budget(50 * MIB, root) == 350 * MIB - RESERVE_BYTES
    write(root / "proc/meminfo", f"MemTotal: {512 * 1024} kB\nMemAvailable: 1024 kB\n")
    assert default_budget(50 * MIB, root) == 50 * MIB


def test_where_nothing_says_there_is_no_budget(tmp_path):
    assert available_bytes(tmp_path) is None
    assert default_budget(1, tmp_path) is None


def test_this_machine_has_a_budget():
    budget = default_budget(50 * MIB)
    assert budget is None or budget >= 50 * MIB


def test_group_limit_is_the_least_that_the_kernel_holds_to(root):
    assert group_limit_bytes(root) is None
    write(root / "proc/self/cgroup", "0::/a/b\n")
    write(root / "sys/fs/cgroup/a/memory.max", f"{500 * MIB}\n")
    write(root / "sys/fs/cgroup/a/memory.current", "5\n")
    assert group_limit_bytes(root) == 500 * MIB
