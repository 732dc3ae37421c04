"""`python -m broker_server status|fleet|rounds|events|pause|resume|stop|drop`: a running server, seen and steered.

What is asked goes through the socket in the server's state folder. Where no server runs, the journal is read.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from broker_server.operator import messages as shown
from broker_server.operator import tables
from broker_server.operator.client import ControlClient, ServerNotRunning
from broker_server.rounds.coordinator import Coordinator
from broker_server.server import settings_command
from broker_server.server.config import ServerConfig
from broker_server.server.desk import asked, facts_of_journal, read_enrolled, read_history
from broker_server.server.enrolments import Enrolments
from broker_server.server.state import JOURNAL, StateBusy, StateFolder
from devices.cli.run import DONE, interrupt_on_terminate

POLL_S = 1.0
"""The time between two questions of --follow."""
VIEWS = {
    "status": "how the federation stands: round, devices, time left, split",
    "fleet": "each device: what it does, its last result, what is wrong with it and what to do",
    "rounds": "the newest rounds: losses, time, energy",
    "events": "the newest notes of the journal",
}
ACTS = {
    "pause": "begin no further round; the one that is open goes on to its end. Holds over restarts",
    "resume": "let rounds begin again",
    "stop": "end the server, as Ctrl-C does; its state is kept",
    "drop": "leave a device out of the round that is open; `revoke` keeps one out for good",
}
Ask = Callable[[shown.Request], shown.Answer]


class ActRefused(RuntimeError):
    """The server does not do what was asked; the sentence says why."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands."""
    for name, text in VIEWS.items():
        parser = commands.add_parser(name, help=text)
        parser.add_argument("--json", action="store_true", help="JSON: one object a line")
        parser.add_argument("--follow", action="store_true", help="go on: what is new, or has changed, each second")
        if name in {"rounds", "events"}:
            parser.add_argument(
                "--last", type=_number, default=20, metavar="N", help="that many at first (default: 20)"
            )
        settings_command.add_state(parser)
        parser.set_defaults(command=_show, view=name)
    for name, text in ACTS.items():
        parser = commands.add_parser(name, help=text)
        if name == "drop":
            parser.add_argument("device", help="the device's name")
        settings_command.add_state(parser)
        parser.set_defaults(command=_act, act=name, device=None)


def _number(text: str) -> int:
    number = int(text)
    if not 1 <= number <= shown.MAX_ROWS:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {shown.MAX_ROWS}")
    return number


def _act(options: argparse.Namespace) -> int:
    state = settings_command.settings(options).value.state
    try:
        request = msgspec.convert({"type": "act", "act": options.act, "device": options.device}, shown.Act)
    except msgspec.ValidationError as exc:
        raise ActRefused(f"{options.device[:80]!r} is not a device's name") from exc
    with contextlib.closing(ControlClient(state)) as client:
        print(_done(client.ask(request)).says)
    return DONE


def _done(answer: shown.Answer) -> shown.Done:
    if isinstance(answer, shown.NotDone):
        raise ActRefused(answer.says)
    assert isinstance(answer, shown.Done)
    return answer


def _show(options: argparse.Namespace) -> int:
    config = settings_command.settings(options).value
    try:
        client = ControlClient(config.state)
    except ServerNotRunning:
        if options.follow or not (config.state / JOURNAL).is_file():
            raise
        with _journal(config) as ask:
            _Screen(options, ask).show()
        print(f"no server runs on {config.state}: this is what its journal has", file=sys.stderr)
        return DONE
    with contextlib.closing(client):
        screen = _Screen(options, client.ask)
        screen.show()
        if options.follow:
            interrupt_on_terminate()
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(POLL_S)
                    screen.show()
    return DONE


class _Screen:
    """Prints a view, and then, each time that it is asked to, what is new or has changed."""

    def __init__(self, options: argparse.Namespace, ask: Ask) -> None:
        self._options, self._ask = options, ask
        self._is_live = options.follow and not options.json and sys.stdout.isatty()
        self._is_first = True
        self._last = -1 if options.view == "rounds" else 0
        self._printed: dict[str, object] = {}

    def show(self) -> None:
        """Print. Raises ServerNotRunning."""
        match self._options.view:
            case "status":
                self._status()
            case "fleet":
                self._fleet()
            case "rounds":
                self._rounds()
            case _:
                self._events()
        self._is_first = False
        sys.stdout.flush()

    def _status(self) -> None:
        found = self._ask(shown.AskStatus())
        assert isinstance(found, shown.FederationView)
        if self._options.json:
            _print_json(found)
        elif self._is_live or self._is_first:
            self._draw(tables.status(found))
        elif self._is_new("says", found.says):
            print(f"{tables.clock(found.at_s)}  {found.says}")
        self._printed["says"] = found.says

    def _fleet(self) -> None:
        found = self._ask(shown.AskFleet())
        assert isinstance(found, shown.FleetView)
        rows = list(found.rows)
        while len(rows) < found.total:
            more = self._ask(shown.AskFleet(after=rows[-1].name))
            assert isinstance(more, shown.FleetView)
            if not more.rows:  # some have gone meanwhile
                break
            rows += more.rows
        changed = [each for each in rows if self._is_new(each.name, each)]
        if self._options.json:
            for each in changed:
                _print_json(each)
        elif self._is_live or self._is_first:
            self._draw(tables.fleet(msgspec.structs.replace(found, rows=tuple(rows))))
        elif changed:
            print(tables.device_lines(changed))

    def _rounds(self) -> None:
        most = self._options.last if self._is_first else shown.MAX_ROWS
        found = self._ask(shown.AskRounds(after=self._last, most=most))
        assert isinstance(found, shown.Rounds)
        if self._options.json:
            for each in found.rows:
                _print_json(each)
        elif found.rows or self._is_first:
            print(tables.rounds(found, has_head=self._is_first))
        self._last = max([self._last, *(each.number for each in found.rows)])

    def _events(self) -> None:
        most = self._options.last if self._is_first else shown.MAX_ROWS
        found = self._ask(shown.AskEvents(after=self._last, most=most))
        assert isinstance(found, shown.Events)
        if self._options.json:
            for each in found.rows:
                _print_json(each)
        elif found.rows:
            print(tables.events(found))
        self._last = max([self._last, *(each.number for each in found.rows)])

    def _is_new(self, name: str, value: object) -> bool:
        before, self._printed[name] = self._printed.get(name), value
        return before != value

    def _draw(self, text: str) -> None:
        print(f"\x1b[H\x1b[2J{text}" if self._is_live else text)


def _print_json(found: msgspec.Struct) -> None:
    print(msgspec.json.encode(found).decode())


@contextlib.contextmanager
def _journal(config: ServerConfig) -> Iterator[Ask]:
    """Answer from the journal of a state folder that no server has. Raises ServerNotRunning, JournalInvalid."""
    try:
        folder = StateFolder(config.state)
    except StateBusy as exc:
        raise ServerNotRunning(f"the server on {config.state} is starting, or ends: ask again") from exc
    with contextlib.closing(folder):
        journal, _ = folder.open()
        with contextlib.closing(journal):
            tasks = tuple(sorted({task for phase, _ in journal.phases() for group in phase.groups for task in group}))
            coordinator = Coordinator(config.rounds, journal.hellos())
            facts = facts_of_journal(journal, coordinator, config.federation, tasks)
            history, enrolments = read_history(journal), Enrolments(config.state)

            def answer(request: shown.Request) -> shown.Answer:
                assert not isinstance(request, shown.Act | shown.AskAffinity)
                return asked(
                    request, facts, history, journal, partial(read_enrolled, enrolments), now_s=0.0, at_s=time.time()
                )

            yield answer
