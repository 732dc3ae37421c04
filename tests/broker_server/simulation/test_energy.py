from broker_server.simulation.energy import BoardPower, SimulatedAccount


class Clock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def test_work_counts_at_the_busy_power_and_the_rest_at_the_idle_one():
    clock = Clock()
    account = SimulatedAccount(BoardPower(busy_w=6.0, idle_w=2.0), clock)
    account.begin(3, "a+b")
    account.switch("train")
    account.work("train", 10.0)
    account.work("train", 5.0)
    clock.now_s = 12.0
    early = account.report(3, "a+b")
    assert (early.energy_j, early.seconds, set(early.phases)) == (90.0, 15.0, {"train"})
    clock.now_s = 20.0
    account.end()
    clock.now_s = 99.0
    found = account.report(3, "a+b")
    assert (found.energy_j, found.seconds, found.above_idle_j) == (100.0, 20.0, 60.0)
    assert (found.phases["train"].energy_j, found.phases["idle"].energy_j) == (90.0, 10.0)
    assert found.estimated
    assert found.measured_s == 0.0
    assert found.source.startswith("simulated")


def test_waiting_for_others_within_work_counts_at_the_idle_power():
    clock = Clock()
    account = SimulatedAccount(BoardPower(busy_w=6.0, idle_w=2.0), clock)
    account.begin(3, "a+b")
    account.work("train", 10.0, 5.0)
    early = account.report(3, "a+b")
    assert (early.energy_j, early.seconds, early.phases["idle"].seconds) == (70.0, 15.0, 5.0)
    clock.now_s = 20.0
    account.end()
    found = account.report(3, "a+b")
    assert (found.energy_j, found.seconds, found.phases["idle"].seconds) == (80.0, 20.0, 10.0)


def test_figures_are_kept_until_they_are_dropped():
    account = SimulatedAccount(BoardPower(busy_w=1.0, idle_w=1.0), Clock())
    account.work("train", 1.0)
    account.end()
    assert account.rounds() == set()
    account.begin(1, "a")
    account.begin(1, "a")
    account.end()
    assert account.rounds() == {(1, "a")}
    assert account.report(1, "a").energy_j == 0.0
    account.drop(1, "a")
    account.drop(1, "a")
    assert account.rounds() == set()
