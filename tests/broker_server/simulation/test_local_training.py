"""Journals of devices that trained each for itself, as one."""

import itertools
import math

import pytest

from broker_server.report import build as reports
from broker_server.rounds.journal import FederationJournal
from broker_server.simulation.fleet import Board, Fleet
from broker_server.simulation.local_training import join, without_link
from broker_server.simulation.run_cache import computed_s, set_computed
from broker_server.simulation.summary import summarise


@pytest.fixture
def journals(world, tmp_path, make_energy):
    first, found = world, {}
    for number, name in enumerate(("x", "y")):
        settings = {"strategy": "all_in_one", "merged_rounds": 1, "split_rounds": 1, "min_devices": 1}
        world = first(**settings) if number == 0 else type(world)(tmp_path / name, **settings)
        measured = {"metrics": {"a": 0.25 * (1 + number)}}
        world.device(name, examples=10 * (1 + 2 * number), energy=make_energy(joules=1.0 + number), **measured).start()
        world.until_finished()
        found[name] = world.journal
        for round_number in range(2):
            set_computed(world.journal, round_number, {name: 2.0 + number})
    return found


def test_join_makes_rounds_of_all_devices_without_bytes(journals, tmp_path):
    journal = FederationJournal(tmp_path / "joined.sqlite3")
    join(journals, journal)
    report = reports.build(journal)
    assert [round_.clients for round_ in report.rounds] == [("x", "y")] * 2
    assert report.test_loss["end"] == {"a": 2.0, "b": 2.0, "c": 2.0, "total": 6.0}
    assert report.test_metrics["end"] == {"a": reports.MetricMean(name="rmse", value=0.4375)}
    assert report.energy.total.energy_j == pytest.approx(3 * 3.0)  # two rounds of training and one that measures
    rows = journal.rounds()
    assert [computed_s(journal, row) for row in rows[:2]] == [{"x": 2.0, "y": 3.0}] * 2
    assert all(later.started_s == row.closed_s for row, later in itertools.pairwise(rows))
    summary = summarise("local", 0, report, journal)
    assert (summary.compute_s, summary.critical_path_s) == (10.0, 6.0)
    assert (summary.bytes_up, summary.bytes_down, summary.simulated_j) == (0, 0, 6.0)
    took = [[row.closed_s - row.started_s for row in each.rounds()[:2]] for each in journals.values()]
    longest = sum(map(max, zip(*took, strict=True)))
    assert summary.simulated_s == pytest.approx(longest)


def test_unconnected_is_the_same_board_with_a_link_that_takes_no_time():
    fleet = Fleet(board=Board(speed=0.5, latency_s=1.0, drop_rate=0.5), boards={"x": {"up_bytes_per_s": 9.0}})
    board = without_link(fleet, "x").of("x")
    assert (board.speed, board.latency_s, board.drop_rate, board.up_bytes_per_s) == (0.5, 0.0, 0.0, math.inf)
