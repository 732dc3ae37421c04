import argparse
import os
import signal
import socket
import threading

import pytest

from devices.cli.run import BAD_INPUT, DONE, REFUSED, UNAVAILABLE, USAGE
from devices.cli.settings import ConfigInvalid
from edge_runtime.agent.command import add_arguments, connect, run
from edge_runtime.agent.config import read
from edge_runtime.agent.state import State
from edge_runtime.agent.work import NoData, WorkerUnusable
from edge_runtime.energy.account import EnergyAccount
from edge_runtime.energy.meter import MeterUnusable
from edge_runtime.wire.link import Disconnected
from edge_runtime.wire.messages import FinalEnergy, Hello
from edge_runtime.wire.topics import PROTOCOL

OFFLINE = b'{"state":"offline"}'


@pytest.fixture
def config_file(tmp_path, public_key):
    path = tmp_path / "agent.toml"
    path.write_text(
        'device = "kitchen"\nfederation = "rooms"\nurl = "mqtt://localhost:1"\ntoken = "secret"\n'
        f'code = "{"0" * 32}"\nserver_key = "{public_key}"\ndata = "data"\nstate = "state"\n'
    )
    path.chmod(0o600)
    return path


@pytest.fixture
def arguments(config_file):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--config", str(config_file)])


def test_run_ends_with_0_when_the_federation_has_finished(arguments, world):
    world.server.plans.append(world.bundle.plan(0))
    world.server.connect()
    assert run(arguments, lambda _config: world.worker, make_link=lambda _config: world.link) == DONE
    assert len(world.server.results) == 1
    assert world.link.retained[world.server.topics.status("kitchen")] == OFFLINE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_ends_with_0_and_reports_offline_on_a_signal(arguments, world, number):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def hello(message):
        if isinstance(message, Hello):
            os.kill(os.getpid(), number)
        return True

    world.server.on_message = hello
    world.server.connect()
    try:
        assert run(arguments, lambda _config: world.worker, make_link=lambda _config: world.link) == DONE
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert world.link.retained[world.server.topics.status("kitchen")] == OFFLINE
    assert world.link.closed


def test_run_leaves_signals_alone_on_another_thread(arguments, world):
    world.server.connect()
    codes = []
    thread = threading.Thread(
        target=lambda: codes.append(run(arguments, lambda _config: world.worker, make_link=lambda _config: world.link))
    )
    thread.start()
    thread.join(60)
    assert codes == [DONE]


def test_run_ends_with_2_for_a_bad_configuration(arguments, config_file, world, capsys):
    config_file.write_text("device = 3\n")
    assert run(arguments, lambda _config: world.worker) == USAGE
    assert "agent.toml: device: 3 is not text" in capsys.readouterr().err


def test_run_ends_with_2_for_a_url_that_is_none(arguments, config_file, world, capsys):
    config_file.write_text(config_file.read_text().replace("mqtt://", "http://"))
    assert run(arguments, lambda _config: world.worker) == USAGE
    assert "is not a broker URL" in capsys.readouterr().err


def test_run_ends_with_3_when_another_process_uses_the_state(arguments, tmp_path, world, capsys):
    state = State(tmp_path / "state")
    assert run(arguments, lambda _config: world.worker) == BAD_INPUT
    state.close()
    assert "another process uses" in capsys.readouterr().err


def test_run_ends_with_3_when_the_data_set_cannot_be_used(arguments, tmp_path, capsys):
    def make_worker(_config):
        raise WorkerUnusable("data/train/image.npy is missing")

    assert run(arguments, make_worker) == BAD_INPUT
    assert "image.npy is missing" in capsys.readouterr().err
    State(tmp_path / "state").close()


def test_run_waits_for_data_and_says_so_once(arguments, monkeypatch, caplog):
    monkeypatch.setattr("edge_runtime.agent.command.DATA_S", 0.01)
    asked = []

    def make_worker(_config):
        asked.append(1)
        if len(asked) < 4:
            raise NoData("no data in /data: it has no folder train")
        raise WorkerUnusable("enough")

    assert run(arguments, make_worker) == BAD_INPUT
    assert len(asked) == 4
    assert caplog.text.count("no data in /data: it has no folder train; waiting for it") == 1


def test_run_that_waits_for_data_can_be_stopped(arguments, caplog):
    def make_worker(_config):
        signal.raise_signal(signal.SIGTERM)
        raise NoData("no data in /data")

    assert run(arguments, make_worker) == DONE
    assert "waiting for it" in caplog.text


def test_run_ends_with_3_when_an_update_cannot_be_kept(arguments, tmp_path, world, capsys):
    def before(_plan, _report):
        (tmp_path / "state" / "pending.json").mkdir()

    world.worker.before = before
    world.server.plans.append(world.bundle.plan(0))
    world.server.connect()
    assert run(arguments, lambda _config: world.worker, make_link=lambda _config: world.link) == BAD_INPUT
    assert "an update cannot be written" in capsys.readouterr().err
    assert world.link.closed


def test_run_ends_with_5_when_the_broker_refuses(arguments, world, capsys):
    world.link.inbox.put(Disconnected("Not authorized", refused=True))
    assert run(arguments, lambda _config: world.worker, make_link=lambda _config: world.link) == REFUSED
    error = capsys.readouterr().err
    assert "enrol kitchen again" in error
    assert f"(protocol {PROTOCOL})" in error
    assert "secret" not in error


def test_connect_makes_a_link_with_a_last_will(config_file):
    link = connect(read(config_file))
    try:
        assert "kitchen at localhost:1" in repr(link)
    finally:
        link.close()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigInvalid("meter: 'sun' is no source"), USAGE, "agent.toml: meter: 'sun' is no source"),
        (MeterUnusable("rapl: not here"), UNAVAILABLE, "the meter auto cannot be used: rapl: not here"),
    ],
)
def test_run_ends_for_a_meter_that_cannot_be_opened(arguments, world, capsys, error, code, words):
    def make_account(_config):
        raise error

    assert run(arguments, lambda _config: world.worker, make_account=make_account) == code
    assert words in capsys.readouterr().err


def test_run_measures_the_idle_board_first_and_reports_it_beside_the_joules(config_file, world, make_meter, tmp_path):
    config_file.write_text(config_file.read_text() + "meter_idle_s = 0.3\n")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(["--config", str(config_file), "--meter", "fake"])
    asked = []

    def make_account(config):
        asked.append(config.meter)
        return EnergyAccount(make_meter(), path=tmp_path / "energy.journal")

    world.worker.before = lambda _plan, _report: threading.Event().wait(0.3)
    world.server.plans.append(world.bundle.plan(0))
    world.server.connect()
    options = {"make_link": lambda _config: world.link, "make_account": make_account}
    assert run(arguments, lambda _config: world.worker, **options) == DONE
    assert asked == ["fake"]
    (spent,) = world.server.said(FinalEnergy)
    assert spent.energy.idle_w == pytest.approx(5.0)


def test_run_that_was_cut_off_at_work_keeps_its_baseline(arguments, world, make_meter, tmp_path, caplog):
    path = tmp_path / "energy.journal"
    cut = EnergyAccount(make_meter(), path=path)
    cut.measure_idle(0.2, lambda seconds: [cut.sample() for _ in range(9)])
    cut.begin(0, "a")
    cut.sample()
    assert cut.rounds() == {(0, "a")}  # all that it knows is in the journal now

    world.server.connect()
    options = {
        "make_link": lambda _config: world.link,
        "make_account": lambda _config: EnergyAccount(make_meter(), path=path),
    }
    with caplog.at_level("INFO"):
        assert run(arguments, lambda _config: world.worker, **options) == DONE
    assert "energy is measured by fake" in caplog.text
    assert "the idle board" not in caplog.text


def test_run_gives_signs_of_life_while_it_measures_the_idle_board(
    config_file, arguments, world, make_meter, tmp_path, monkeypatch
):
    config_file.write_text(config_file.read_text() + "meter_idle_s = 3\n")
    address = tmp_path / "notify"
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(address))
    manager.settimeout(60)
    monkeypatch.setenv("NOTIFY_SOCKET", str(address))
    monkeypatch.setenv("WATCHDOG_USEC", "4000")
    account = EnergyAccount(make_meter())
    options = {"make_link": lambda _config: world.link, "make_account": lambda _config: account}
    thread = threading.Thread(target=lambda: run(arguments, lambda _config: world.worker, **options))
    thread.start()
    assert manager.recv(100) == b"WATCHDOG=1"
    assert account.idle_w is None  # it is still being measured
    world.server.connect()
    thread.join(60)
    manager.close()
    assert account.idle_w == pytest.approx(5.0)
