import pytest

from broker_server.report.build import EnergyReport
from broker_server.report.energy import total
from broker_server.report.summary import duration, happened, sentences, took, worth


def test_a_finished_federation_is_three_sentences(make_report):
    happened_, worth_, took_ = sentences(make_report())
    assert (
        happened_
        == "Two devices trained two tasks as one model for 2 rounds, then in 2 groups (a; b) for 1 round each."
    )
    assert worth_ == (
        "The total test loss went from 6.0000 to 3.0000 (−50.0 %); the model of all tasks had reached 4.0000; "
        "a gained most (−75.0 %), b least (−37.5 %)."
    )
    assert took_ == (
        "It took 1 min 40 s, 4.0 MiB over the network and at most 3 MiB of memory on a device; "
        "no device measured its energy."
    )


def test_groups_of_several_lengths_and_many_devices_are_counted(make_report, make_round):
    rounds = [make_round(1, "train", "a", {"a": 1.0}), *(make_round(n, "train", "b", {"b": 1.0}) for n in (2, 3))]
    assert happened(make_report(rounds=rounds)).endswith("in 2 groups (a; b) for 1–2 rounds each.")
    tasks = tuple(f"t{number}" for number in range(13))
    assert "trained 13 tasks" in happened(make_report(tasks=tasks))


def test_before_anything_was_trained_nothing_is_claimed(make_report):
    report = make_report(rounds=[], test_loss={"before": {"a": 1.0}, "merged": None, "end": None})
    assert sentences(report) == ("Nothing has been trained yet: two tasks wait for devices.",)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ({"before": {"a": 2.0, "total": 2.0}, "merged": {"a": 1.0, "total": 1.0}, "end": None}, "to 1.0000 (−50.0 %)."),
        ({"before": {"total": 0.0}, "end": {"total": 1.0}}, ""),
        ({"before": {"total": -1.0}, "end": {"total": -2.0}}, ""),
        ({"before": {"total": 1.0}, "end": {"a": 1.0}}, ""),
    ],
)
def test_worth_is_said_where_losses_can_be_compared(make_report, losses, said):
    found = worth(make_report(test_loss=losses))
    assert found.endswith(said) if said else found == ""


def test_energy_is_labelled(make_report, make_energy):
    measured = total([make_energy(joules=10.0, source="model", estimated=True), None])
    report = make_report(energy=EnergyReport(total=measured, groups={}))
    assert took(report).endswith("and ≥ 10.0 J (estimated, 1 of 2 measured).")


def test_what_was_not_measured_is_left_out(make_report, make_round):
    rounds = [make_round(1, "merge", "a", {"a": 1.0}, bytes_up=None, peak_rss_bytes=None)]
    assert took(make_report(rounds=rounds)) == "It took 1 min 40 s; no device measured its energy."
    assert took(make_report(rounds=rounds, wall_s=None)) == "No device measured its energy."


@pytest.mark.parametrize(("seconds", "text"), [(1.4, "1 s"), (61, "1 min 1 s"), (7300, "2 h 1 min")])
def test_duration_in_words(seconds, text):
    assert duration(seconds) == text
