import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker_server.report.curves import BOTTOM, HEIGHT, LEFT, LINE, RIGHT, TOP, WIDTH, _apart, _steps, curves


def test_losses_stand_beside_their_own_start(make_report):
    found = curves(make_report())
    assert found.is_relative
    a, b = found.curves
    assert [[point.text for point in run] for run in a.runs] == [
        ["a, round 1: 2.0000, 100 % of its start", "a, round 2: 1.0000, 50 % of its start"],
        ["a, round 4: 0.5000, 25 % of its start"],
    ]
    assert a.runs[0][0].y == b.runs[0][0].y  # both begin at 1
    assert a.runs[0][1].y - a.runs[0][0].y == 2 * (a.runs[1][0].y - a.runs[0][1].y)  # 1, 0.5, 0.25
    assert [band.name for band in found.bands] == ["merged", "a", "b"]
    assert a.colour != b.colour
    assert a.paths[1] == f"{a.runs[1][0].x:.1f},{a.runs[1][0].y:.1f}"


def test_losses_that_do_not_start_above_zero_are_shown_themselves(make_report, make_round):
    rounds = [make_round(1, "merge", "a", {"a": -1.0}), make_round(2, "merge", "a", {"a": -3.0})]
    found = curves(make_report(tasks=("a", "b"), rounds=rounds))
    assert not found.is_relative
    assert [curve.task for curve in found.curves] == ["a"]
    assert [point.text for point in found.curves[0].runs[0]] == ["a, round 1: -1.0000", "a, round 2: -3.0000"]
    assert float(found.losses[0].text) <= -3.0


def test_losses_that_are_no_numbers_leave_a_gap(make_report, make_round):
    rounds = [
        make_round(1, "merge", "a+b", {"a": 1.0, "b": 1.0}),
        make_round(2, "merge", "a+b", {"a": math.inf, "b": 1.0}),
    ]
    a, b = curves(make_report(rounds=rounds)).curves
    assert [len(run) for run in a.runs] == [1]
    assert [len(run) for run in b.runs] == [2]


def test_nothing_trained_is_nothing_to_draw(make_report):
    assert curves(make_report(rounds=[])) is None


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30), st.integers(0, 1000))
def test_every_place_is_inside_the_drawing(losses, first):
    from broker_server.report.build import EnergyReport, Report, RoundReport
    from broker_server.report.energy import total

    rounds = [
        RoundReport(
            round=first + number, phase="merge", group="a", clients=("x",), train_loss={"a": loss}, val_loss=None,
            wall_s=1.0, bytes_up=None, bytes_down=None, update_schemes={}, update_ratio=None, peak_rss_bytes=None,
            energy=total([]), energy_by_device={},
        )
        for number, loss in enumerate(losses)
    ]  # fmt: skip
    found = curves(
        Report(
            strategy="mas", tasks=("a",), seed=0, versions={}, rounds=rounds, test_loss={}, wall_s=None,
            energy=EnergyReport(total=total([]), groups={}), affinity=None, split=None,
        )
    )  # fmt: skip
    for curve in found.curves:
        for point in (point for run in curve.runs for point in run):
            assert LEFT <= point.x <= WIDTH - RIGHT
            assert TOP - 1e-6 <= point.y <= HEIGHT - BOTTOM + 1e-6
    assert all(LEFT <= tick.at <= WIDTH - RIGHT for tick in found.rounds)
    assert 2 <= len(found.losses) <= 8


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_steps_hold_the_values_between_them(low, wide):
    steps = _steps(low, low + wide)
    assert len(steps) >= 2
    assert steps[0] <= low + 1e-6 * abs(low) + 1e-9
    assert steps[-1] >= low + wide - 1e-6 * abs(low + wide) - 1e-9
    assert list(steps) == sorted(set(steps))


@given(st.lists(st.floats(TOP, HEIGHT - BOTTOM), min_size=1, max_size=10))
def test_names_stand_a_line_apart_in_the_order_of_their_curves(places):
    found = list(_apart({str(number): at for number, at in enumerate(places)}).items())
    assert [places[int(task)] for task, _ in found] == sorted(places)
    assert all(after - before >= LINE - 1e-9 for (_, before), (_, after) in pairwise(found))
    assert found[-1][1] <= HEIGHT - BOTTOM + 1e-9
