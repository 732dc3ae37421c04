import pytest

from edge_runtime.training.service_memory import VARIABLE, unheld_limit_bytes

MIB = 2**20


@pytest.fixture
def held(tmp_path):
    """A root folder in which the kernel holds the process to a limit."""

    def make(limit):
        for name, text in (
            ("proc/self/cgroup", "0::/system.slice/mas-edge.service\n"),
            ("sys/fs/cgroup/system.slice/mas-edge.service/memory.max", f"{limit}\n"),
            ("sys/fs/cgroup/system.slice/mas-edge.service/memory.current", "1000\n"),
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("limit", "unheld"),
    [(300 * MIB, None), (300 * MIB + 4096, None), (200 * MIB, None), (400 * MIB, 300), ("max", 300)],
)
def test_limit_that_the_kernel_does_not_hold_to_is_the_agent_s(held, limit, unheld):
    found = unheld_limit_bytes({VARIABLE: "300MiB"}, held(limit))
    assert found == (unheld and unheld * MIB)


def test_limit_without_control_groups_is_the_agent_s(tmp_path):
    assert unheld_limit_bytes({VARIABLE: "300MiB"}, tmp_path) == 300 * MIB


@pytest.mark.parametrize("environment", [{}, {VARIABLE: ""}, {VARIABLE: "much"}])
def test_no_service_no_limit(tmp_path, environment):
    assert unheld_limit_bytes(environment, tmp_path) is None
