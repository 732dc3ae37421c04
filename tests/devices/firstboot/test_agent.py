import pytest

from devices.cli.run import UsageError
from devices.firstboot.agent import read, with_memory_budget


def test_read_keeps_the_content_and_hides_the_token(agent_toml):
    path = agent_toml()
    found = read(path, device="pi-01", server="mqtts://server.lan:8883")
    assert found.content == path.read_bytes()
    assert "secret" not in repr(found)
    assert found.ca is None


def test_read_takes_the_certificates_along(agent_toml, tmp_path):
    (tmp_path / "ca.pem").write_text("certificate")
    assert read(agent_toml(ca_file="ca.pem")).ca == b"certificate"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ca_file": "ca.pem"}, "ca.pem cannot be read"),
        ({"ca_file": "../ca.pem"}, "the certificates are ca.pem on a board"),
        ({"data": "/data"}, "enrol pi-01 without --data"),
        ({"url": "http://x"}, "'http://x' is no broker's URL"),
        ({"url": "mqtts://[::1"}, "is no broker's URL"),
        ({"url": "mqtts://localhost:8883"}, "is on a board the board itself: enrol pi-01 with the server's name"),
        ({"url": "mqtt://127.0.0.2"}, "is on a board the board itself"),
        ({"url": "mqtts://[::1]:8883"}, "is on a board the board itself"),
        ({"url": "mqtts://0.0.0.0:8883"}, "is on a board the board itself"),
        ({"server_key": "12"}, "no agent's configuration .*server_key.*broker_server enrol NAME --out"),
        ({"device": "a/b"}, "no agent's configuration"),
    ],
)
def test_read_refuses(agent_toml, changes, said):
    with pytest.raises(UsageError, match=said):
        read(agent_toml(**changes))


def test_read_for_another_device_or_server_is_refused(agent_toml):
    with pytest.raises(UsageError, match="is for the device pi-01, not for pi-02: each has a token of its own"):
        read(agent_toml(), device="pi-02")
    with pytest.raises(UsageError, match="enrol pi-01 with --url mqtt://other:1883"):
        read(agent_toml(), server="mqtt://other:1883")


def test_read_something_else(tmp_path):
    (tmp_path / "big").write_bytes(bytes(100_000))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is over 65536 bytes"):
        read(tmp_path / "big")
    with pytest.raises(UsageError, match="broker_server enrol pi-07 --out"):
        read(tmp_path / "binary", device="pi-07")


@pytest.mark.parametrize(
    ("size", "size_bytes", "limit_mib"), [("220MiB", 220 << 20, 252), ("1 GiB", 1 << 30, 1056), ("1000000", 10**6, 33)]
)
def test_memory_budget_says_what_the_service_may_take(agent_toml, size, size_bytes, limit_mib):
    found = read(agent_toml(memory_budget=size))
    assert (found.memory_budget_bytes, found.memory_max_mib) == (size_bytes, limit_mib)
    made = with_memory_budget(read(agent_toml()), size)
    assert made.memory_budget_bytes == size_bytes
    assert made.content.splitlines()[0] == f'memory_budget = "{size}"'.encode()
    assert made.content.endswith(agent_toml().read_bytes())
    assert with_memory_budget(found, size) == found


def test_memory_budget_is_not_there_without_being_said(agent_toml):
    found = read(agent_toml())
    assert (found.memory_budget_bytes, found.memory_max_mib) == (None, None)


def test_memory_budget_that_cannot_be_is_refused(agent_toml):
    with pytest.raises(UsageError, match=r"agent.toml: memory_budget: 'much' is not a size: write 220MiB"):
        read(agent_toml(memory_budget="much"))
    with pytest.raises(UsageError, match="memory-budget: '-1' is not a size"):
        with_memory_budget(read(agent_toml()), "-1")
    with pytest.raises(UsageError, match="agent.toml of pi-01 has another memory budget, of 104857600 bytes"):
        with_memory_budget(read(agent_toml(memory_budget="100MiB")), "200MiB")
