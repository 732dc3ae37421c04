from itertools import pairwise

import pytest

from broker_server.report import build as reports
from broker_server.simulation.run_cache import GroupRun, computed_s
from edge_runtime.wire.blob import describe


def test_library_finds_what_it_keeps(cache):
    group_run = GroupRun(rounds=(), cpu_s=({"attic": 1.5},), weights=cache.blobs.add(b"weights"))
    cache.keep("a" * 64, group_run)
    assert cache.find("a" * 64) == group_run
    assert cache.find("b" * 64) is None


def test_library_does_not_know_a_course_that_is_damaged_or_whose_weights_are_gone(cache, tmp_path):
    cache.keep("a" * 64, GroupRun(rounds=(), cpu_s=(), weights=describe(b"weights")))
    assert cache.find("a" * 64) is None
    cache.keep("b" * 64, GroupRun(rounds=(), cpu_s=(), weights=None))
    (path,) = (tmp_path / "library").glob("b*.json")
    path.write_bytes(path.read_bytes()[:-3])
    assert cache.find("b" * 64) is None


def phases(played):
    return [(about.phase, about.group) for about in played]


def test_courses_of_an_earlier_federation_are_taken_over_whole(play):
    first = play(groups=2).to_the_end()
    first.group_runs.keep()
    second = play(groups=3).to_the_end()
    assert "merge" in {phase for phase, _ in phases(first.played)}
    assert "merge" not in {phase for phase, _ in phases(second.played)}
    shared = first.weights().keys() & second.weights().keys()
    assert shared
    assert all(first.weights()[key] == second.weights()[key] for key in shared)
    affinities = [each.federation.affinities.counts.tolist() for each in (first, second)]
    assert affinities[0] == affinities[1]  # learnt from rounds that were taken over, too


@pytest.mark.slow
def test_a_course_that_was_taken_over_is_journalled_and_charged_as_if_done_anew(play):
    first = play(strategy="one_by_one").to_the_end()
    first.group_runs.keep()
    second = play(strategy="one_by_one").to_the_end()
    assert second.played == []
    assert second.journal.rounds() == first.journal.rounds()
    for row in second.journal.rounds():
        assert second.journal.facts_of(row) == first.journal.facts_of(row)
        assert computed_s(second.journal, row) == {"attic": 1.0, "cellar": 2.0}
    assert reports.build(second.journal) == reports.build(first.journal)
    assert reports.build(second.journal).test_metrics["end"]["depth"].value == 0.25
    assert second.timeline.now_s == first.timeline.now_s
    assert second.weights() == first.weights()


def test_a_course_is_moved_to_where_it_stands_now(play):
    """Tasks alone, with other rounds before them: HOA trains what one-by-one has trained after other things."""
    first = play(strategy="fixed", fixed_groups=(("segmentation",), ("depth",), ("normals",))).to_the_end()
    first.group_runs.keep()
    second = play(strategy="hoa", groups=2).to_the_end()
    alone = {"depth", "normals", "segmentation"}
    assert alone.isdisjoint(about.group for about in second.played if about.work == "train" and about.phase == "pairs")
    rows = [row for row in second.journal.rounds() if row.round.work == "train"]
    assert [row.round.number for row in second.journal.rounds()] == list(range(len(second.journal.rounds())))
    assert all(one.closed_s <= other.started_s for one, other in pairwise(rows))
    assert all(row.closed_s - row.started_s == 10.0 for row in rows)
    for row in second.journal.rounds():
        assert all(result.round == row.round.number for result in second.journal.results(row.round.number).values())


@pytest.mark.parametrize(
    "other", [{"context": "other boards"}, {"lr": 0.01}, {"seed": 1}, {"merged_rounds": 3}, {"update_scheme": "int8"}]
)
def test_a_course_is_another_one_where_anything_differs_that_it_depends_on(play, other):
    play(strategy="all_in_one").to_the_end().group_runs.keep()
    assert play(strategy="all_in_one", **other).group_runs.next() is not None
    assert play(strategy="all_in_one").group_runs.next() is None


def test_a_course_that_was_begun_goes_on_and_is_kept(play):
    first = play("cut", strategy="all_in_one")
    first.round()
    first.journal.close()
    again = play("cut", strategy="all_in_one").to_the_end()
    assert [about.index for about in again.played if about.work == "train"] == [1, 2]
    again.group_runs.keep()
    assert play(strategy="all_in_one").group_runs.next() is None


def test_a_course_that_was_begun_is_not_taken_over_in_the_middle(play):
    begun = play(strategy="all_in_one")
    planned = begun.group_runs.next()
    begun.journal.open_round(planned, ("attic",), 1)
    play(strategy="all_in_one").to_the_end().group_runs.keep()
    assert begun.group_runs.next() == planned


def test_phases_that_may_end_early_are_no_courses(play):
    surely = {"confidence": 0.5, "confidence_rounds": 1, "groups": 2}
    first = play(**surely).to_the_end()
    first.group_runs.keep()
    second = play(**surely).to_the_end()
    assert {phase for phase, _ in phases(second.played)} == {"merge"}
    assert second.weights() == first.weights()


def test_seconds_that_nobody_counted_are_unknown(play):
    one = play(strategy="all_in_one")
    planned = one.group_runs.next()
    one.journal.open_round(planned, ("attic",), 1)
    (row,) = one.journal.rounds()
    assert computed_s(one.journal, row) == {}
