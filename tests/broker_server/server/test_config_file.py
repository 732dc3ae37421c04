from pathlib import Path

import pytest

from broker_server.server.config import ConfigInvalid, ServerConfig
from broker_server.server.config_file import read
from edge_runtime.wire.compression import Updates
from edge_runtime.wire.messages import Training
from edge_runtime.wire.training import FixedWeighting


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
        ("training = 3", "training: a table"),
        ("[training]\nport = 3", r"training\.port: no key"),
        ("lr = 0.1\n[training]\nlr = 0.1", "lr: it is there twice"),
        ('[training]\noptimizer = "adam"', "optimizer"),
        ("[training]\nclip_norm = -1", "clip_norm"),
        ("[training.task_weights]\nA = 1", "task_weights"),
        ("[training.task_weights]\na = -1", "task_weights"),
        ('[training]\nweighting = "gradnorm"\ntask_weights = { a = 2 }', "task_weights: .* are learnt"),
        ("updates = 3", "updates: a table"),
        ('[updates]\nupdate_scheme = "int8"', r"updates\.update_scheme: no key"),
        ('update_scheme = "fp16"\n[updates]\nscheme = "int8"', "update_scheme: it is there twice"),
        ('[updates]\nscheme = "int4"', "update_scheme"),
        ("[updates]\ntopk_fraction = 0.6", "topk_fraction"),
        ("topk_fraction = 0.0", "topk_fraction"),
        ("probe_from = 20", "probe_from: the merged phase has 20 rounds"),
        ('stems = "own"', "stems: own stems go with the strategies all_in_one and fedbone"),
        ('general = "host"', "probe: 'exact' needs the encoder on devices"),
        ('aggregation = "median"', "aggregation: Invalid enum value 'median'"),
        ('server_optimizer = "lamb"', "server_optimizer: Invalid enum value 'lamb'"),
        ("server_lr = 0.0", "server_lr: Expected"),
        ("server_momentum = 1.0", "server_momentum: Expected"),
        ("server_tau = 0.0", "server_tau: Expected"),
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


def test_read_how_devices_train_in_a_table_of_its_own(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text(
        "local_epochs = 2\n[training]\noptimizer = 'adamw'\nlr = 1e-3\nclip_norm = 1\nproximal_mu = 0.01\n"
        "probe = 'representation'\n[training.task_weights]\ndepth = 2\n"
    )
    training = read(path, lr=0.5).training
    assert training == Training(
        epochs=2,
        first_epoch=0,
        batch=16,
        lr=0.5,
        momentum=0.9,
        weight_decay=1e-4,
        seed=0,
        probe_every=ServerConfig().probe_every,
        probe="representation",
        optimizer="adamw",
        clip_norm=1.0,
        proximal_mu=0.01,
        weighting=FixedWeighting(weights={"depth": 2.0}),
    )


def test_read_how_updates_are_sent(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text("[updates]\nscheme = 'topk'\ntopk_fraction = 0.01\n")
    assert read(path).updates == Updates(scheme="topk", topk_fraction=0.01)
    assert read(path, update_scheme="int8").updates == Updates(scheme="int8", topk_fraction=0.01)
    assert ServerConfig().updates == Updates(scheme="fp32")
    assert read(path, update_scheme="fp32").fingerprint() == read(path).fingerprint()  # it may change on the way
