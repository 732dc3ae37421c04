from pathlib import Path

import pytest

from broker_server.config import ConfigInvalid, ServerConfig, read
from broker_server.split import SplitImpossible


def test_read_nothing_gives_the_defaults():
    assert read(None) == ServerConfig()
    assert ServerConfig().bundle_path == Path("runs/server/bundle")


def test_read_flags_go_over_the_file(tmp_path):
    path = tmp_path / "server.toml"
    paths = 'state = "st"\nbundle = "/b"\ncertificate = "c.pem"\nkey = "k.pem"\n'
    path.write_text(f'federation = "lab"\nport = 1\n{paths}tasks = ["a", "b"]\n')
    config = read(path, port=2, host=None, bundle=Path("c"))
    assert (config.federation, config.port, config.tasks) == ("lab", 2, ("a", "b"))
    assert config.state == tmp_path.resolve() / "st"
    assert (config.certificate, config.key) == (tmp_path.resolve() / "c.pem", tmp_path.resolve() / "k.pem")
    assert config.bundle_path == Path("c")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("colour = 1", "colour"),
        ("port = 70000", "port"),
        ("lr = 0.0", "lr"),
        ("port = [", "not TOML"),
        ('tasks = ["a", "a"]', "twice"),
        ('tasks = ["A"]', "tasks"),
        ("quorum = 3\nclients_per_round = 2", "quorum"),
        ("probe_every = 0", "affinities"),
        ("state = 3", "state"),
        ('certificate = "c.pem"', "certificate: .* a key as well"),
        ('key = "k.pem"', "key: .* a certificate as well"),
    ],
)
def test_read_refuses(tmp_path, text, why):
    path = tmp_path / "server.toml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=why) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_read_missing_file_or_folder(tmp_path):
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read(tmp_path / "none.toml")
    with pytest.raises(ConfigInvalid, match="not a file"):
        read(tmp_path)


def test_config_strategy_for_too_few_tasks():
    with pytest.raises(SplitImpossible):
        ServerConfig(groups=3).strategy(("a", "b"))
