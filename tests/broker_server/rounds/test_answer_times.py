import pytest

from broker_server.rounds.answer_times import ENOUGH, KEPT, LEAST_S, LEAST_SHARE, AnswerTimes
from broker_server.rounds.rules import Rules


def times_of(*seconds):
    times = AnswerTimes()
    for each in seconds:
        times.add("train", each)
    return times


@pytest.mark.parametrize(
    ("seconds", "rules", "deadline_s"),
    [
        ((20.0,) * ENOUGH, {}, 600.0),  # it is off
        ((20.0,) * (ENOUGH - 1), {"deadline_factor": 2.0}, 600.0),  # too few
        ((20.0,) * ENOUGH, {"deadline_factor": 2.0}, 40.0),
        ((20.0,) * 9 + (500.0,), {"deadline_factor": 2.0}, 40.0),  # the tenth is not most
        ((20.0,) * 9 + (500.0,), {"deadline_factor": 2.0, "deadline_quantile": 1.0}, 600.0),  # the ceiling
        ((0.1,) * ENOUGH, {"deadline_factor": 2.0}, LEAST_S),
    ],
)
def test_the_deadline_follows_from_what_most_devices_took(seconds, rules, deadline_s):
    assert times_of(*seconds).deadline_s("train", Rules(deadline_s=600.0, **rules)) == deadline_s


def test_training_and_measuring_are_apart():
    rules = Rules(deadline_s=600.0, deadline_factor=2.0)
    assert times_of(*(20.0,) * ENOUGH).deadline_s("evaluate", rules) == 600.0


def test_the_newest_are_kept_and_go_over_to_the_next_process():
    times = times_of(*(float(number) for number in range(KEPT + 10)))
    again = AnswerTimes(times.kept())
    assert again.kept() == times.kept()
    assert again.kept().times == {"train": tuple(float(number) for number in range(10, KEPT + 10))}
    again.add("train", 1.0)
    assert len(again.kept().times["train"]) == KEPT


def test_a_slow_device_is_asked_for_what_it_does_in_so_many_times_the_fastest_ones():
    times = AnswerTimes()
    assert times.share("new", 2.0) == 1.0
    times.add_update("fast", 10.0, 100)
    times.add_update("slow", 100.0, 100)
    assert times.share("slow", 0.0) == 1.0
    assert times.share("fast", 2.0) == 1.0
    assert times.share("slow", 2.0) == pytest.approx(0.2)
    times.add_update("slow", 10.0, 100)  # the newest counts half
    assert times.share("slow", 2.0) == pytest.approx(0.2 / 0.55)
    times.add_update("stuck", 1e6, 1)
    assert times.share("stuck", 2.0) == LEAST_SHARE
    times.add_update("empty", 0.0, 0)
    assert times.share("empty", 2.0) == 1.0
    times.add_update("at once", 0.0, 100)
    assert times.share("at once", 2.0) == 1.0
    assert AnswerTimes(times.kept()).share("slow", 2.0) == times.share("slow", 2.0)
