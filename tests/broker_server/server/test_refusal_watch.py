import logging
import threading
from pathlib import Path

import pytest

pytest.importorskip("rich")

from broker_server import mqtt
from broker_server.mqtt.stats import Stats
from broker_server.server.log_view import LogView
from broker_server.server.refusal_watch import COUNTED, MAX_WAITING, RefusalWatch
from broker_server.server.refusals import RefusalLine

pytestmark = pytest.mark.workstation


def watching(stats=None):
    watch, said = RefusalWatch(), []
    watch.stats = stats
    watch.say = lambda line: said.append(line.text)
    return watch, said


def test_watch_tells_who_was_refused_and_why():
    watch, said = watching()
    thread = threading.Thread(target=watch.add, args=("pi", "the token has expired"))
    thread.start()
    thread.join()
    watch.tell(0.0)
    assert said == ["refused pi: the token has expired"]
    assert watch.refusals.of("pi") == "refused: the token has expired"
    watch.add("pi", None)
    watch.tell(1.0)
    assert watch.refusals.of("pi") == "", "it was let in"


def test_watch_tells_what_the_broker_refuses_on_its_own():
    stats = Stats()
    watch, said = watching(stats)
    watch.tell(0.0)
    stats.refused["clients-full"] += 200
    stats.closed["pending-full"] += 1
    stats.closed["disconnect"] += 50
    watch.tell(1.0)
    assert said == [
        "refused devices: there are as many as broker.clients allows",
        "refused connections: too many at once have not said who they are",
    ]
    stats.refused["clients-full"] += 30
    watch.tell(62.0)
    assert said[2:] == ["refused devices: there are as many as broker.clients allows (30 times more in 1 min)"]


def test_watch_knows_counters_and_reasons_that_the_broker_has():
    stats = Stats()
    assert all(isinstance(getattr(stats, kind), dict) for kind in COUNTED)
    broker = "".join(path.read_text() for path in Path(mqtt.__file__).parent.glob("*.py"))
    assert [each for reasons in COUNTED.values() for each in reasons if f'"{each}"' not in broker] == []


def test_watch_is_bounded_while_nobody_tells():
    watch, said = watching()
    for _ in range(MAX_WAITING + 10):
        watch.add("pi", "no token")
    watch.tell(0.0)
    assert len(said) == 1
    assert watch.refusals.of("pi") == f"refused: no token ({MAX_WAITING} times)"


def test_watch_without_a_better_place_logs(caplog):
    watch = RefusalWatch()
    watch.add("pi", "no token")
    watch.tell(0.0)
    assert [record.getMessage() for record in caplog.records] == ["refused pi: no token"]


def test_log_view_logs_refusals_and_notes(caplog):
    caplog.set_level(logging.INFO)
    view = LogView()
    view.note("a % note")
    view.refusal(RefusalLine(who="pi", why="no token", count=3, in_s=60.0))
    view.refresh(None, None)
    first, second = caplog.records
    assert (first.levelname, first.getMessage()) == ("INFO", "a % note")
    assert (second.levelname, second.fields) == ("WARNING", {"refused": "pi", "why": "no token", "count": 3})
