import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from devices.cli.run import DONE, STOPPED, USAGE, UsageError, interrupt_on_terminate, run, sentence, stop_event

ROOT = Path(__file__).parents[3]


class Odd(UsageError):
    pass


def raising(exc):
    def command():
        raise exc

    return command


def test_run_gives_the_command_s_own_code(capsys):
    assert run(lambda: DONE) == DONE
    assert run(lambda: 7) == 7
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("exc", "code", "line"),
    [
        (UsageError("--lr: no"), USAGE, "error: --lr: no\n"),
        (Odd("x"), USAGE, "error: x\n"),
        (KeyError("x"), 3, "error: 'x'\n"),
        (LookupError("x"), 4, "error: x\n"),
        (FileNotFoundError(2, "No such file", "a.npy"), 5, "error: a.npy: No such file\n"),
        (OSError(5, "Input/output error"), 5, "error: the system: Input/output error\n"),
        (OSError("of its own"), 5, "error: of its own\n"),
        (KeyboardInterrupt(), STOPPED, "stopped\n"),
    ],
)
def test_run_makes_one_sentence_and_the_nearest_code_of_an_exception(capsys, exc, code, line):
    assert run(raising(exc), {OSError: 5, LookupError: 4, KeyError: 3}) == code
    assert capsys.readouterr() == ("", line)


def test_run_does_not_hide_what_nobody_expected():
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


def test_sentence_is_the_exception_s():
    assert sentence(ValueError("why")) == "why"


def test_interrupt_on_terminate_makes_sigterm_an_interrupt():
    before = signal.getsignal(signal.SIGTERM)
    try:
        interrupt_on_terminate()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_event_is_set_by_a_signal_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_event() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        assert signal.getsignal(number) is signal.SIG_DFL
    assert signal.getsignal(number) is before


@pytest.mark.process
def test_stop_event_ends_at_once_with_a_second_signal():
    program = (
        "import os, signal\nfrom devices.cli.run import stop_event\n"
        "with stop_event():\n os.kill(os.getpid(), signal.SIGTERM)\n os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == -signal.SIGTERM


def test_stop_event_leaves_signals_alone_on_another_thread():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_event() as stop:
            seen.append((stop.is_set(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [(False, before)]
