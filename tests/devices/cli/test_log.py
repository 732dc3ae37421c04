import io
import json
import logging
import sys

import pytest

from devices.cli.log import HumanFormatter, JsonFormatter, LogSettings, log_to_stderr
from devices.cli.run import STOPPED, run
from devices.cli.text import MAX_SHOWN, printable

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[1;31mX\x1b[0m\nmallory has joined: 99 online\n"


def test_log_has_a_line_for_each_record_and_traceback_lines_of_its_own():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("test")  # noqa: LOG001 - of this test alone
    log.addHandler(handler)
    log.warning("says %s", ESCAPES)
    try:
        int(ESCAPES)
    except ValueError:
        log.exception("failed")
    try:
        {}[ESCAPES]
    except KeyError as exc:
        log.error("failed", exc_info=ValueError(*exc.args))  # noqa: TRY400 - its text is as it came
    lines = stream.getvalue().splitlines()
    assert lines[0] == "WARNING says " + printable(ESCAPES, MAX_SHOWN)
    assert lines[1] == "ERROR failed"
    assert all(line.isprintable() for line in lines)
    assert {line for line in lines[2:] if not line.startswith("    ")} == {"ERROR failed"}
    assert "    mallory has joined: 99 online" in lines


@pytest.fixture
def logged():
    """What records become in JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    log = logging.Logger("test")  # noqa: LOG001 - of this test alone
    log.addHandler(handler)
    return log, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_log_in_json_has_an_object_for_each_record(logged):
    log, found = logged
    log.warning("says %s", ESCAPES, extra={"fields": {"round": 3, "loss": float("nan")}})
    log.info("plain")
    try:
        int(ESCAPES)
    except ValueError:
        log.exception("failed")
    first, second, third = found()
    assert first["at"].endswith("Z")
    assert (first["level"], first["from"], first["round"], first["loss"]) == ("warning", "test", 3, None)
    assert first["text"] == "says " + printable(ESCAPES, MAX_SHOWN)
    assert list(second) == ["at", "level", "from", "text"]
    assert third["traceback"][0].startswith("Traceback")
    assert all(line.isprintable() for line in third["traceback"])


def raising(exc):
    def command():
        raise exc

    return command


@pytest.fixture
def root():
    """The root logger, whose handlers (pytest has some during a test) and level are as they were afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    root.handlers = handlers
    root.setLevel(level)


def test_log_settings_hold_once_they_are_known(root):
    root.handlers = []
    log_to_stderr(LogSettings(level="warning"), "%(message)s")
    (handler,) = root.handlers
    assert isinstance(handler.formatter, HumanFormatter)
    assert root.level == logging.WARNING
    log_to_stderr(LogSettings(level="debug", format="json"), "%(message)s")
    assert root.handlers == [handler]
    assert isinstance(handler.formatter, JsonFormatter)
    assert root.level == logging.DEBUG


def test_command_ends_in_json_where_it_logs_so(root, capsys):
    root.handlers = []
    log_to_stderr(LogSettings(format="json"), "%(message)s")
    root.handlers[0].setStream(sys.stderr)
    assert run(raising(OSError("no way")), {OSError: 4}) == 4
    assert run(raising(KeyboardInterrupt()), stopped="stopped; the state is kept") == STOPPED
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["level"], first["text"], first["exit_code"]) == ("error", "no way", 4)
    assert (second["level"], second["text"]) == ("info", "stopped; the state is kept")


def test_log_goes_on_where_a_process_logs_elsewhere_already(root):
    others = logging.StreamHandler()
    root.handlers = [others]
    root.setLevel(logging.ERROR)
    log_to_stderr(LogSettings(), "%(message)s")
    assert root.handlers == [others]
    assert others.formatter is None
    assert root.level == logging.ERROR
