from types import SimpleNamespace

import pytest

from broker_server.report import build as reports
from broker_server.rounds.round_state import RoundTraffic
from broker_server.simulation.summary import summarise


@pytest.fixture
def summary_of():
    def make(played):
        return summarise("a method", 7, reports.build(played.journal), played.journal)

    return make


def test_summarise_counts_training_alone(play, summary_of, make_energy):
    run = play(strategy="mas", groups=2, energy=make_energy(3.0)).to_the_end()
    found = summary_of(run)
    trained = [about for about in run.played if about.work == "train"]
    assert len(trained) < len(run.played)
    assert (found.method, found.seed, found.strategy) == ("a method", 7, "mas")
    assert found.rounds == len(trained)
    assert found.groups == next(phase.groups for phase in run.federation.phases if phase.name == "split")
    assert found.simulated_s == 10.0 * len(trained)
    assert found.simulated_j == 2 * 3.0 * len(trained)
    assert found.compute_s == 3.0 * len(trained)
    assert found.critical_path_s == 2.0 * len(trained)
    assert found.bytes_up == 1000 * len(trained)
    assert found.bytes_down == 200 * len(trained)
    assert found.test_loss == {"depth": 0.5, "normals": 0.5, "segmentation": 0.5, "total": 1.5}
    names = {"depth": "rmse", "normals": "angular_error_deg", "segmentation": "miou"}
    assert found.test_metric == {task: reports.MetricMean(name=name, value=0.25) for task, name in names.items()}


def test_summarise_does_not_guess_what_was_not_measured(play, summary_of, make_energy):
    run = play(strategy="all_in_one", energy=make_energy(3.0)).to_the_end()
    run.journal.set_fact("computed/1", '{"attic": 1.0}')
    found = summary_of(run)
    assert found.compute_s is None
    assert found.critical_path_s is None
    assert found.simulated_j == 18.0


def test_summarise_energy_that_a_device_could_not_tell(play, summary_of, make_energy):
    run = play(strategy="all_in_one", energy=make_energy(None)).to_the_end()
    assert summary_of(run).simulated_j is None


def test_summarise_bytes_of_a_round_that_was_interrupted(play, summary_of, make_energy):
    run = play(strategy="all_in_one", energy=make_energy(3.0))
    run.round()
    planned = run.group_runs.next()
    run.journal.open_round(planned, ("attic", "cellar"), 2)
    for device in ("attic", "cellar"):
        run.journal.add_result(planned.number, device, run.result(planned, device))
        run.group_runs.computed(device, SimpleNamespace(round=planned.number), 1.0)
    run.federation.close(planned, ("attic", "cellar"), RoundTraffic(up_bytes=None))
    run.to_the_end()
    found = summary_of(run)
    assert found.bytes_up is None
    assert found.bytes_down == 600


def test_summarise_keeps_what_tells_the_last_groups_from_those_of_other_runs(play, summary_of):
    best = summary_of(play(strategy="mas", groups=2).to_the_end()).last_split
    assert best.losses == {"depth": {"depth": 0.5}, "normals+segmentation": {"normals": 0.5, "segmentation": 0.5}}
    assert len(best.group_scores) == 8
    every = summary_of(play(strategy="exhaustive", groups=2).to_the_end()).last_split
    assert (every.origin, len(every.losses)) == (best.origin, 7)
    longer = summary_of(play(strategy="mas", groups=2, split_rounds=2).to_the_end()).last_split
    assert longer.origin != best.origin
    assert summary_of(play(strategy="all_in_one").to_the_end()).last_split is None
