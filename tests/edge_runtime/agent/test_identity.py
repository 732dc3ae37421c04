import pytest

from edge_runtime.agent.identity import KEY, load_or_create
from edge_runtime.agent.state import StateUnusable
from edge_runtime.wire.envelope import raw_public


def test_key_is_made_once_and_for_its_owner_alone(tmp_path):
    made = load_or_create(tmp_path)
    assert raw_public(load_or_create(tmp_path)) == raw_public(made)
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "zz", "00" * 31])
def test_key_that_is_none_says_what_to_do(tmp_path, text):
    (tmp_path / KEY).write_text(text)
    (tmp_path / KEY).chmod(0o600)
    with pytest.raises(StateUnusable, match="not a device's key: delete it, and enrol the device again"):
        load_or_create(tmp_path)


def test_key_that_others_can_read_is_not_used(tmp_path):
    load_or_create(tmp_path)
    (tmp_path / KEY).chmod(0o644)
    with pytest.raises(StateUnusable, match="can be read by others"):
        load_or_create(tmp_path)


def test_key_in_a_folder_that_is_none(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(StateUnusable, match="cannot be used"):
        load_or_create(tmp_path / "state")
