import os
import socket

import pytest

from edge_runtime.agent.watchdog import heartbeat


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def manager(tmp_path):
    """A socket where systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def heard(manager):
    found = []
    while True:
        try:
            found.append(manager.recv(100))
        except BlockingIOError:
            return found


def test_heartbeat_is_sent_four_times_a_period(manager):
    clock = Clock()
    beat = heartbeat({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "40000000"}, clock)
    for _ in range(401):
        beat()
        clock.now += 0.1
    assert heard(manager) == [b"WATCHDOG=1"] * 4


def test_heartbeat_of_an_abstract_name(tmp_path):
    name = f"mas-edge-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.setblocking(False)
        heartbeat({"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "1000000"})()
        assert heard(listening) == [b"WATCHDOG=1"]


def test_heartbeat_goes_on_when_nobody_listens(manager, tmp_path):
    clock = Clock()
    beat = heartbeat({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"}, clock)
    beat()
    manager_path = tmp_path / "gone"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(manager_path))
        listening.setblocking(False)
        clock.now += 1
        beat()
        assert heard(listening) == [b"WATCHDOG=1"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/x"}, {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}])
def test_heartbeat_is_nothing_elsewhere(environment):
    heartbeat(environment)()


def test_heartbeat_touches_the_file_that_a_container_s_health_is_read_from(tmp_path):
    clock, alive = Clock(), tmp_path / "alive"
    beat = heartbeat({"MAS_EDGE_ALIVE": str(alive)}, clock)
    assert not alive.exists()
    beat()
    os.utime(alive, (0, 0))
    clock.now += 5
    beat()
    assert alive.stat().st_mtime == 0
    clock.now += 5
    beat()
    assert alive.stat().st_mtime > 0
    heartbeat({"MAS_EDGE_ALIVE": str(tmp_path / "no/folder")}, clock)()
