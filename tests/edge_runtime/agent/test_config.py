import logging

import pytest

from devices.cli.settings import MAX_FILE_BYTES, ConfigInvalid
from edge_runtime.agent.config import AgentConfig, read

GOOD = {
    "device": '"kitchen"',
    "federation": '"rooms"',
    "url": '"mqtt://localhost:1883"',
    "token": '"secret.token"',
    "code": '"' + "0" * 32 + '"',
    "server_key": '"' + "ab" * 32 + '"',
    "data": '"data/kitchen"',
    "state": '"state"',
}


def write(folder, **changes):
    path = folder / "agent.toml"
    values = GOOD | changes
    path.write_text("".join(f"{key} = {value}\n" for key, value in values.items() if value is not None))
    path.chmod(0o600)
    return path


def test_read_makes_paths_absolute_and_fills_in_defaults(tmp_path):
    config = read(write(tmp_path))
    assert (config.device, config.federation, config.token) == ("kitchen", "rooms", "secret.token")
    assert config.data == tmp_path / "data/kitchen"
    assert config.state == tmp_path / "state"
    assert (config.threads, config.ca_file, config.max_download_bytes) == (None, None, 2 * 1024**3)


def test_read_takes_the_optional_keys(tmp_path):
    path = write(tmp_path, threads="2", ca_file='"ca.pem"', max_download_bytes="1000", data='"/srv/data"')
    config = read(path)
    assert (config.threads, config.ca_file, config.max_download_bytes) == (2, tmp_path / "ca.pem", 1000)
    assert str(config.data) == "/srv/data"


@pytest.mark.parametrize(
    ("engine", "official"),
    [("portable", "off"), ("auto", "auto"), ("ort_training", "require"), ("official", "require")],
)
def test_engine_says_whether_ort_training_artifacts_are_asked_for(tmp_path, engine, official):
    assert read(write(tmp_path)).ort_training == "off"
    assert read(write(tmp_path, engine=f'"{engine}"')).ort_training == official


def test_read_takes_a_meter_and_what_it_needs(tmp_path):
    config = read(write(tmp_path))
    assert (config.meter, str(config.meter_root), config.meter_idle_s) == ("auto", "/", 10.0)
    path = write(tmp_path, meter='"mqtt://h/t"', meter_user='"me"', meter_password_file='"pw"', meter_ca_file='"p.pem"')
    config = read(path)
    assert (config.meter, config.meter_user) == ("mqtt://h/t", "me")
    assert (config.meter_password_file, config.meter_ca_file) == (tmp_path / "pw", tmp_path / "p.pem")
    assert config.meter_calibration is None
    assert read(write(tmp_path, meter_calibration='"pmic.toml"')).meter_calibration == tmp_path / "pmic.toml"
    assert read(write(tmp_path, meter_root='"host"', meter_idle_s="0")).meter_root == tmp_path / "host"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": '"fast"'}, "engine"),
        ({"device": '"../x"'}, "device"),
        ({"federation": '""'}, "federation"),
        ({"server_key": '"abc"'}, "server_key"),
        ({"threads": "0"}, "threads"),
        ({"threads": '"two"'}, "threads"),
        ({"token": None}, "token"),
        ({"tokn": '"x"'}, "tokn: there is no such key; did you mean token?"),
        ({"token": '"' + "secret" * 1000 + '"'}, "token: its value is not text"),
        ({"data": "3"}, "data"),
        ({"data": '""'}, "data: '' is not a path"),
        ({"state": '"a\\u0000b"'}, "is not a path"),
        ({"max_download_bytes": "-1"}, "max_download_bytes"),
        ({"meter": '""'}, "meter"),
        ({"meter": "3"}, "meter"),
        ({"meter_idle_s": "-1"}, "meter_idle_s"),
        ({"meter_idle_s": "1e9"}, "meter_idle_s"),
    ],
)
def test_read_names_file_and_key(tmp_path, changes, words):
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigInvalid) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("content", [b"device = ", b"\xff\xfe", b"[" * 1000, b"x" * (MAX_FILE_BYTES + 1)])
def test_read_refuses_what_is_not_a_configuration(tmp_path, content):
    path = tmp_path / "agent.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigInvalid, match=r"agent\.toml"):
        read(path)


def test_read_refuses_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigInvalid, match="cannot be read: No such file"):
        read(tmp_path / "agent.toml")
    with pytest.raises(ConfigInvalid, match="is not a file"):
        read(tmp_path)


def test_read_warns_when_others_may_read_the_token(tmp_path, caplog):
    path = write(tmp_path)
    with caplog.at_level(logging.WARNING):
        read(path)
        assert not caplog.records
        path.chmod(0o644)
        read(path)
    assert "chmod 600" in caplog.text
    assert "secret" not in caplog.text


def test_config_masks_its_token(tmp_path):
    config = read(write(tmp_path))
    assert "secret" not in repr(config)
    assert "token=***" in repr(config)
    assert isinstance(config, AgentConfig)
