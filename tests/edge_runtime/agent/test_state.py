import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import samples

from edge_runtime.agent.state import MAX_PENDING_BYTES, LinkSpeeds, Pending, State, StateUnusable
from edge_runtime.wire.blob import describe


@pytest.fixture
def state(tmp_path):
    state = State(tmp_path / "state")
    yield state
    state.close()


@pytest.fixture
def pending(make_bundle):
    plan = make_bundle().plan(3)
    return Pending(
        plan=plan,
        result=samples.update(3, group=plan.group, weights=describe(b"weights")),
    )


def test_state_returns_the_result_that_was_saved(state, pending):
    assert state.pending_result() is None
    state.save_result(pending, b"weights")
    assert state.pending_result() == pending
    assert pending.result.weights.digest in state.weights
    state.drop_result()
    assert state.pending_result() is None
    state.drop_result()


def test_state_keeps_an_evaluation_without_weights(state, pending):
    kept = Pending(plan=pending.plan, result=samples.evaluation(3, group="a+b"))
    state.save_result(kept, None)
    assert state.pending_result() == kept


def test_state_drops_an_update_whose_weights_are_gone(state, pending, caplog):
    state.save_result(pending, b"weights")
    state.weights.discard(pending.result.weights.digest)
    with caplog.at_level(logging.WARNING):
        assert state.pending_result() is None
    assert "weights of the update of round 3 are gone" in caplog.text
    assert not (state.root / "pending.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[" * 5000, b"\xff", b" " * (MAX_PENDING_BYTES + 1)])
def test_state_renames_a_journal_that_cannot_be_read(state, content, caplog):
    (state.root / "pending.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert state.pending_result() is None
    assert "cannot be read and was renamed to .bad" in caplog.text
    assert (state.root / "pending.bad").read_bytes() == content


def test_state_is_for_one_process(tmp_path):
    first = State(tmp_path / "state")
    with pytest.raises(StateUnusable, match="another process uses"):
        State(tmp_path / "state")
    first.close()
    State(tmp_path / "state").close()


@pytest.mark.process
def test_state_is_free_again_when_its_process_was_killed(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from edge_runtime.agent.state import State;"
        "s = State(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[3]
    env = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "state")], env=env, check=False, timeout=60)
    State(tmp_path / "state").close()


def test_state_cannot_be_where_a_file_is(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(StateUnusable, match="cannot be used"):
        State(tmp_path / "state")


def test_state_that_cannot_be_written_is_unusable(state, pending):
    (state.root / "pending.json").mkdir()
    with pytest.raises(StateUnusable, match="cannot be written"):
        state.save_result(pending, b"weights")
    with pytest.raises(StateUnusable, match="cannot be removed"):
        state.drop_result()


def test_state_keeps_the_link_s_speeds_for_the_next_process(state):
    assert state.speeds() == LinkSpeeds()
    state.save_speeds(LinkSpeeds(bytes_per_s=125_000.5, down_bytes_per_s=5.0))
    assert state.speeds() == LinkSpeeds(bytes_per_s=125_000.5, down_bytes_per_s=5.0)
    (state.root / "uplink.json").write_bytes(b'{"bytes_per_s":7.0}')  # as an earlier version left it
    assert state.speeds() == LinkSpeeds(bytes_per_s=7.0)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"bytes_per_s":0}', b'{"bytes_per_s":"fast"}', b"\xff", b"[" * 9999])
def test_state_that_holds_no_speeds_does_not_know_them(state, content):
    (state.root / "uplink.json").write_bytes(content)
    assert state.speeds() == LinkSpeeds()


def test_state_that_cannot_take_the_speeds_is_unusable(state):
    (state.root / "uplink.json").mkdir()
    with pytest.raises(StateUnusable, match="the link's speeds"):
        state.save_speeds(LinkSpeeds(bytes_per_s=1.0))
    assert state.speeds() == LinkSpeeds()


@pytest.mark.parametrize(
    ("up", "down", "differs"), [(None, None, False), (105.0, None, False), (120.0, None, True), (None, 1.0, True)]
)
def test_speeds_are_worth_saving_that_have_changed_much(up, down, differs):
    now = LinkSpeeds(bytes_per_s=up, down_bytes_per_s=down)
    assert now.differ_from(LinkSpeeds(bytes_per_s=100.0)) == differs
