import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devices.meters.rapl import RaplMeter
from edge_runtime.energy.account import HEALTH_S, KEEP_S, MAX_JOURNAL_BYTES, EnergyAccount
from edge_runtime.energy.records import Reading, from_lines

ROOT = Path(__file__).parents[3]


@pytest.fixture
def account(meter, clock, health):
    """Without its thread: time and readings are the test's."""
    return EnergyAccount(meter, health=health, clock=clock)


def run(account, clock, seconds, step_s=0.02):
    for _ in range(round(seconds / step_s)):
        clock.now_s += step_s
        account.sample()


def test_phases_of_a_round_have_their_joules(account, clock, meter):
    account.begin(3, "depth")
    run(account, clock, 1.0)
    with account.phase("train"):
        run(account, clock, 2.0)
        with account.phase("probe"):
            run(account, clock, 1.0)
    report = account.report(3, "depth")
    joules = {name: phase.energy_j for name, phase in report.phases.items()}
    assert joules == {"idle": pytest.approx(5), "train": pytest.approx(10), "probe": pytest.approx(5)}
    assert report.energy_j == pytest.approx(20.0)
    assert report.source == account.source == "fake"
    assert report.sample_rate_hz == pytest.approx(50, rel=0.05)


def test_phase_ends_with_an_error_too(account, clock):
    account.begin(3, "depth")
    with pytest.raises(KeyError), account.phase("train"):
        raise KeyError
    run(account, clock, 1.0)
    assert account.report(3, "depth").phases.keys() == {"idle"}


def test_switch_to_the_same_phase_reads_nothing(account, clock, meter):
    account.begin(3, "depth")
    account.switch("train")
    meter.read = None
    account.switch("train")


def test_switch_outside_any_round_changes_nothing(account):
    account.switch("train")
    with account.phase("train"):
        pass
    assert account.report(0, "").phases == {}


def test_after_the_end_nothing_counts(account, clock):
    account.begin(3, "depth")
    run(account, clock, 1.0)
    account.end()
    run(account, clock, 1.0)
    assert account.report(3, "depth").energy_j == pytest.approx(5.0)


def test_baseline_is_measured_before_and_reported_beside(account, clock, meter):
    meter.value = (2.0,)
    account.begin(2, "before")
    assert account.measure_idle(3.0, lambda seconds: run(account, clock, seconds)) == pytest.approx(2.0)
    run(account, clock, 1.0)
    assert account.report(2, "before").energy_j == pytest.approx(2.0)
    meter.value = (7.0,)
    account.begin(3, "depth")
    run(account, clock, 1.0)
    report = account.report(3, "depth")
    assert report.idle_w == pytest.approx(2.0)
    assert report.above_idle_j == pytest.approx(5.0)


def test_meter_that_fails_for_a_while_leaves_a_gap(account, clock, meter):
    account.begin(3, "depth")
    run(account, clock, 1.0)
    meter.value = None
    run(account, clock, 1.0)
    meter.value = (5.0,)
    run(account, clock, 1.0)
    report = account.report(3, "depth")
    assert report.energy_j == pytest.approx(15.0)
    assert report.gap_s == pytest.approx(1.0, rel=0.05)


def test_meter_that_fails_for_good_gives_none(account, clock, meter):
    account.begin(3, "depth")
    meter.value = None
    run(account, clock, 1.0)
    assert account.report(3, "depth").energy_j is None
    assert account.report(3, "depth").seconds == pytest.approx(1.0)


def test_without_a_meter_health_and_time_are_kept(clock, health):
    account = EnergyAccount(None, health=health, clock=clock, reasons=("rapl: not here",))
    assert account.measure_idle(1.0, lambda _: None) is None
    account.begin(3, "depth")
    clock.now_s += 2
    report = account.report(3, "depth")
    assert (report.energy_j, report.seconds, account.reasons) == (None, pytest.approx(2.0), ("rapl: not here",))
    assert (report.temperature_max_c, report.throttled) == (50.0, ())
    assert account.source is None


def test_health_is_looked_at_every_few_seconds(meter, clock, health):
    looks = []

    def probe():
        looks.append(clock.now_s)
        return health()

    account = EnergyAccount(meter, health=probe, clock=clock)
    run(account, clock, 3 * HEALTH_S + 1)
    assert len(looks) == 4


def test_restart_goes_on_with_what_was_counted(tmp_path, meter, clock):
    path = tmp_path / "energy.journal"
    first = EnergyAccount(meter, path=path, clock=clock)
    first.measure_idle(1.0, lambda seconds: run(first, clock, seconds))
    first.begin(3, "depth")
    run(first, clock, 1.0)
    clock.now_s = 7.0  # a board that has booted anew counts from zero
    second = EnergyAccount(meter, path=path, clock=clock)
    second.begin(3, "depth")
    run(second, clock, 1.0)
    report = second.report(3, "depth")
    assert 10.0 - 5.0 * (KEEP_S + 0.02) <= report.energy_j <= 10.0
    assert report.idle_w == pytest.approx(5.0)
    second.drop(3, "depth")
    assert EnergyAccount(meter, path=path, clock=clock).report(3, "depth").energy_j is None


def test_torn_journal_is_taken_up(tmp_path, meter, clock, caplog):
    path = tmp_path / "energy.journal"
    first = EnergyAccount(meter, path=path, clock=clock)
    first.begin(3, "depth")
    run(first, clock, 1.0)
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level("INFO"):
        second = EnergyAccount(meter, path=path, clock=clock)
    assert "torn" in caplog.text
    left_j = 5.0 - 5.0 * 2 * (KEEP_S + 0.02)  # the last ones of the process, and those of the torn line's time
    assert left_j <= second.report(3, "depth").energy_j < 5.0


@pytest.mark.slow
def test_journal_stays_small_and_loses_nothing(tmp_path, meter, clock):
    path = tmp_path / "energy.journal"
    account = EnergyAccount(meter, path=path, clock=clock)
    account.begin(3, "depth")
    written = 0
    while written < 2 * MAX_JOURNAL_BYTES:
        before = path.stat().st_size
        run(account, clock, 20.0)
        written += max(0, path.stat().st_size - before)
    seconds = account.report(3, "depth").seconds
    assert path.stat().st_size < MAX_JOURNAL_BYTES + 100_000
    again = EnergyAccount(meter, path=path, clock=clock)
    assert again.report(3, "depth").energy_j == pytest.approx(5.0 * seconds)


def test_disk_that_fails_ends_the_journal_and_not_the_account(tmp_path, meter, clock, caplog):
    folder = tmp_path / "energy.journal"
    folder.mkdir()
    account = EnergyAccount(meter, path=folder, clock=clock)
    assert "no longer journalled" in caplog.text
    account.begin(3, "depth")
    run(account, clock, 1.0)
    assert account.report(3, "depth").energy_j == pytest.approx(5.0)


def test_sync_that_fails_is_said_and_the_account_goes_on(tmp_path, meter, clock, caplog):
    account = EnergyAccount(meter, path=tmp_path / "energy.journal", clock=clock)
    account.sync()
    assert caplog.text == ""
    read_end, write_end = os.pipe()  # a pipe cannot be synced
    os.dup2(write_end, account._journal._descriptor)
    account.sync()
    assert "power cut" in caplog.text
    os.close(read_end)
    os.close(write_end)


def test_account_without_a_journal_has_nothing_to_sync(account):
    account.sync()


def test_running_account_samples_by_itself_and_closes_its_meter(tmp_path, meter):
    with EnergyAccount(meter, path=tmp_path / "energy.journal") as account:
        account.begin(1, "a")
        with account.phase("train"):
            time.sleep(0.5)
        report = account.report(1, "a")
    assert meter.closed
    assert report.phases["train"].energy_j == pytest.approx(5.0 * report.phases["train"].seconds, rel=1e-3)
    records, torn = from_lines((tmp_path / "energy.journal").read_bytes())
    assert torn == 0
    assert len([record for record in records if isinstance(record, Reading)]) > 5


JOURNALLING = """
import os, sys, time
from pathlib import Path
from devices.meters.meter import MeterFacts
from edge_runtime.energy.account import EnergyAccount

class Meter:
    facts = MeterFacts(source="fake", covers="all", rate_hz=1000.0, resolution=0.0, gain_error=0.0)
    n = 0
    def read(self):
        self.n += 1
        os.write(1, b"%d %.6f\\n" % (self.n, time.monotonic()))
        return (float(self.n),)
    def close(self):
        pass

with EnergyAccount(Meter(), path=Path(sys.argv[1])) as account:
    account.begin(4, "depth")
    while True:
        for phase in ("train", "probe"):
            with account.phase(phase):
                time.sleep(0.05)
"""


@pytest.mark.process
def test_killed_process_loses_at_most_a_quarter_of_a_second(tmp_path):
    path, chance = tmp_path / "energy.journal", random.Random(7)
    seconds = 0.0
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", JOURNALLING, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        first = process.stdout.readline()
        time.sleep(chance.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines(keepends=True)]
        taken_s = [float(line.split()[1]) for line in lines if line.endswith(b"\n")]
        assert process.wait() == -signal.SIGKILL
        records, torn = from_lines(path.read_bytes())
        kept = sum(isinstance(record, Reading) for record in records)
        assert torn <= 1
        assert kept <= len(taken_s)
        lost_s = taken_s[max(0, kept - 1) : -1]  # from the last one kept to the one before the kill
        assert not lost_s or lost_s[-1] - lost_s[0] < KEEP_S
        report = EnergyAccount(None, path=path).report(4, "depth")
        assert report.seconds >= seconds
        seconds = report.seconds
    assert report.energy_j > 0


def test_what_held_the_board_back_before_a_round_is_not_the_round_s(meter, clock, health):
    """A probe that says once what has happened since it was asked before, as counters make it."""
    events = []

    def probe():
        said = tuple(events)
        events.clear()
        return health(throttled=said)

    account = EnergyAccount(meter, health=probe, clock=clock)
    account.begin(1, "a")
    events.append("over_current")
    account.begin(2, "a")
    assert account.report(1, "a").throttled == ("over_current",)
    assert account.report(2, "a").throttled == ()
    events.append("throttled")
    assert account.report(2, "a").throttled == ("throttled",)


def test_counters_that_wrap_jitter_and_stand_still_in_the_journal_give_the_joules(tmp_path, clock):
    """RAPL's files from end to end: 20 s at 25 to 35 W, a range of 60 J, uneven readings and a second without any."""
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "0", "max_energy_range_uj": "60000000"}.items():
        (zone / name).write_text(f"{text}\n")
    chance, power_w, total_j = random.Random(3), 30.0, 0.0
    account = EnergyAccount(RaplMeter(tmp_path), path=tmp_path / "energy.journal", clock=clock)
    account.begin(1, "a")
    began_s = clock.now_s
    while clock.now_s < began_s + 20:
        step_s = 1.0 if 0.05 < chance.random() < 0.06 else chance.uniform(0.05, 0.15)
        power_w = min(35.0, max(25.0, power_w + chance.uniform(-2, 2)))
        total_j += power_w * step_s
        clock.now_s += step_s
        (zone / "energy_uj").write_text(f"{total_j % 60 * 1e6:.0f}\n")
        account.sample()
    assert total_j > 8 * 60
    for found in (account, EnergyAccount(None, path=tmp_path / "energy.journal", clock=clock)):
        assert found.report(1, "a").energy_j == pytest.approx(total_j, rel=0.03)


def test_account_says_what_it_knows_of_its_source(tmp_path, meter, clock, facts):
    account = EnergyAccount(meter, path=tmp_path / "energy.journal", clock=clock)
    assert (account.source, account.is_estimated, account.idle_w) == ("fake", False, None)
    account.measure_idle(1.0, lambda seconds: run(account, clock, seconds))
    assert account.idle_w == pytest.approx(5.0)
    meter.facts = facts(source="other", estimated=True)
    other = EnergyAccount(meter, path=tmp_path / "energy.journal", clock=clock)
    assert (other.source, other.is_estimated, other.idle_w) == ("other", True, None)
