import msgspec
import pytest
import samples
from hypothesis import given
from hypothesis import strategies as st

from broker_server.simulation.fleet import (
    Board,
    Fleet,
    SimulatedEncoderServer,
    WorkCosts,
    additive,
    drop_after,
    probes,
    work_time,
)
from broker_server.simulation.traffic import Traffic

COSTS = WorkCosts(
    train_s=0.1,
    train_head_s={"a": 0.01, "b": 0.02},
    evaluate_s=0.04,
    evaluate_head_s={"a": 0.001, "b": 0.002},
    probe_s=5.0,
)


def plan(tasks=("a", "b"), **changes):
    return samples.plan(tasks=tasks, training=samples.training(**{"epochs": 2, "batch": 10, **changes}))


def measuring(tasks=("a", "b")):
    return samples.plan(tasks=tasks, work="evaluate")


def test_fleet_gives_a_board_what_it_has_of_its_own():
    fleet = Fleet(board=Board(speed=0.5, busy_w=7.0), boards={"x": {"speed": 0.1, "drop_rate": 1}})
    assert fleet.of("x") == Board(speed=0.1, busy_w=7.0, drop_rate=1.0)
    assert fleet.of("y") == Board(speed=0.5, busy_w=7.0)
    assert fleet.of("y").link.latency_s == 0.0
    with pytest.raises(msgspec.ValidationError, match="wings"):
        Fleet(boards={"x": {"wings": 2}}).of("x")


def test_fleet_of_other_boards_keeps_what_one_of_them_has_of_its_own():
    fleet = Fleet(
        board=Board(speed=0.5, busy_w=7.0),
        boards={"x": {"speed": 0.1}},
        encoder_server=SimulatedEncoderServer(speed=4.0),
    )
    other = fleet.having({"speed": 0.2, "latency_s": 1.0})
    assert (other.of("x"), other.encoder_server) == (Board(speed=0.1, busy_w=7.0, latency_s=1.0), fleet.encoder_server)
    assert other.of("y").speed == 0.2
    with pytest.raises(msgspec.ValidationError, match="wings"):
        fleet.having({"wings": 2})


def work_seconds(plan, examples, tasks, costs, speed):
    return work_time(plan, examples, tasks, costs, Board(speed=speed), SimulatedEncoderServer(speed=100.0)).total_s


def test_work_time_adds_encoder_heads_and_probes():
    assert work_seconds(plan(), 20, ("a", "b"), COSTS, 0.5) == pytest.approx(2 * 20 * 0.13 / 0.5)
    assert work_seconds(plan(), 20, ("a",), COSTS, 1.0) == pytest.approx(2 * 20 * 0.11)
    assert work_seconds(measuring(), 20, ("a", "b"), COSTS, 1.0) == pytest.approx(20 * 0.043)
    probed = work_seconds(plan(probe_every=2), 20, ("a", "b"), COSTS, 1.0)
    assert probed == pytest.approx(2 * 20 * 0.13 + 2 * 5.0)
    alone = work_seconds(plan(tasks=("a",), probe_every=2), 20, ("a",), COSTS, 1.0)
    assert alone == pytest.approx(2 * 20 * 0.11 + 2 * 5.0 / 4)


def test_work_time_of_split_training_is_the_board_s_the_host_s_and_the_link_s():
    costs = msgspec.structs.replace(COSTS, train_stem_s=0.02, evaluate_stem_s=0.01)
    board = Board(speed=0.5, up_bytes_per_s=10.0, down_bytes_per_s=100.0, latency_s=0.25)
    crosses = Traffic(up_bytes=50, down_bytes=100, messages=8)
    trained = work_time(plan(probe_every=2), 20, ("a", "b"), costs, board, SimulatedEncoderServer(speed=4.0), crosses)
    assert trained.board_s == pytest.approx((2 * 20 * (0.02 + 0.03) + 2 * 5.0) / 0.5)
    assert trained.encoder_server_s == pytest.approx(2 * 20 * 0.08 / 4.0)
    assert trained.traffic_s == pytest.approx(5.0 + 1.0 + 2.0)
    assert trained.total_s == trained.board_s + trained.encoder_server_s + trained.traffic_s
    measured = work_time(measuring(("a",)), 20, ("a", "b"), costs, board, SimulatedEncoderServer(), crosses)
    assert (measured.board_s, measured.encoder_server_s) == pytest.approx((20 * 0.011 / 0.5, 20 * 0.03))


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 4), st.integers(0, 5), st.integers(1, 7))
def test_probes_counts_the_batches_that_a_device_probes(examples, batch, epochs, first, every):
    settings = plan(epochs=epochs, first_epoch=first, batch=batch, probe_every=every).training
    steps = -(-examples // batch)
    counted = sum(position % every == 0 for position in range(first * steps, (first + epochs) * steps))
    assert probes(settings, examples) == counted


def test_additive_takes_the_encoder_out_of_each_task_alone():
    encoder, heads = additive(1.5, {"a": 1.2, "b": 1.3})
    assert encoder == pytest.approx(1.0)
    assert heads == pytest.approx({"a": 0.2, "b": 0.3})
    assert additive(1.5, {"a": 1.2}) == (1.5, {"a": 0.0})
    assert additive(9.0, {"a": 1.0, "b": 2.0}) == (0.0, {"a": 1.0, "b": 2.0})
    assert additive(0.5, {"a": 1.0, "b": 2.0})[0] == 1.0


def test_drop_after_is_drawn_for_the_device_and_the_round():
    board = Board(drop_rate=0.5)
    drawn = [drop_after(plan(first_epoch=epoch), "x", board, 0, 10.0) for epoch in range(50)]
    assert drawn == [drop_after(plan(first_epoch=epoch), "x", board, 0, 10.0) for epoch in range(50)]
    lost = [after for after in drawn if after is not None]
    assert 10 < len(lost) < 40
    assert all(0 <= after <= 10.0 for after in lost)
    assert drop_after(plan(), "x", Board(), 0, 10.0) is None
    assert drop_after(measuring(), "x", Board(drop_rate=1.0), 0, 10.0) is None
