"""Views of a running federation: a live one in a terminal, one line for each round elsewhere."""

import math
import sys
from collections import deque
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from broker_server.grouping.affinity import Affinities
from broker_server.report.build import round_report
from broker_server.report.energy import label
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.journal import RoundRow
from broker_server.rounds.losses import weighted_losses
from broker_server.rounds.round_state import UNANSWERED, Result
from broker_server.server.loop import ServerLoop
from edge_runtime.wire.messages import Evaluation
from edge_runtime.wire.names import Tasks

SHOWN_ROUNDS = 30
SHOWN_DEVICES = 6
SHOWN_NOTES = 2
LEAST_ROUNDS = 3
_FRAME = 5
"""Lines of the frame, the headline, the rounds' header and the prompt."""


def round_line(row: RoundRow, results: Mapping[str, Result]) -> str:
    """Return one line on a closed round."""
    closed = row.round
    head = f"round {closed.number:>3}  {closed.phase:<7} {closed.index + 1}/{closed.rounds}  {closed.group}"
    if closed.work == "evaluate":
        evaluations = [(r.loss, r.examples) for r in results.values() if isinstance(r, Evaluation)]
        return f"{head}  test loss {losses_text(weighted_losses(evaluations))}  ({len(results)} devices)"
    report = round_report(row, results)
    cost = "" if report.energy.energy_j is None else f", {label(report.energy)}"
    return f"{head}  train loss {losses_text(report.train_loss)}  ({len(results)} devices, {report.wall_s:.1f} s{cost})"


def losses_text(losses: Mapping[str, float]) -> str:
    """Return losses by task and their sum, in short."""
    if not losses:
        return "not measured"
    by_task = " ".join(f"{task} {loss:.4f}" for task, loss in losses.items())
    return f"{sum(losses.values()):.4f} = {by_task}" if len(losses) > 1 else by_task


class PlainView:
    """Quiet: one line for each round and each note."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout

    def note(self, text: str) -> None:
        """Print a note."""
        print(text, file=self._file, flush=True)

    def on_round_closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """Print a round's line."""
        print(round_line(row, results), file=self._file, flush=True)

    def refresh(self, coordinator: Coordinator, loop: ServerLoop | None) -> None:
        """Print nothing: lines stay as they are."""


class LiveView:
    """A live view: rounds and losses, affinities, groups, devices. It draws between `start` and `stop`."""

    def __init__(self, console: Console | None = None) -> None:
        self._rounds: deque[tuple[RoundRow, dict[str, Result]]] = deque(maxlen=SHOWN_ROUNDS)
        self._notes: deque[str] = deque(maxlen=SHOWN_NOTES)
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._affinities: Affinities | None = None

    def start(self) -> None:
        """Take over the terminal."""
        self._live.start()

    def stop(self) -> None:
        """Leave the last view standing."""
        self._live.stop()

    def note(self, text: str) -> None:
        """Show a note until newer ones push it out."""
        self._notes.append(text)

    def on_round_closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """Show a round."""
        self._rounds.append((row, dict(results)))
        self._affinities = None

    def refresh(self, coordinator: Coordinator, loop: ServerLoop | None) -> None:
        """Draw the view again."""
        self._live.update(self.render(coordinator, loop))

    def render(self, coordinator: Coordinator, loop: ServerLoop | None) -> RenderableType:
        """Return the view, with as many of the newest rounds as the terminal's height has room for."""
        below: list[Table | Text] = []
        if loop is not None:
            if self._affinities is None:
                self._affinities = loop.federation.affinities
            if self._affinities.counts.any():
                below.append(affinity_table(self._affinities))
            for phase in loop.federation.phases:
                if phase.split is not None:
                    groups = "   ".join(" + ".join(group) for group in phase.split.groups)
                    below.append(_line(f"split into {groups}   (score {phase.split.score:.4f})", style="bold"))
        below.append(device_table(coordinator))
        below.extend(_line(note, style="dim") for note in self._notes)
        taken = _FRAME + sum(1 if isinstance(part, Text) else part.row_count + _head(part) for part in below)
        room = max(LEAST_ROUNDS, self._live.console.size.height - taken)
        above: list[RenderableType] = [self._headline(coordinator, loop)]
        if self._rounds and loop is not None:
            above.append(self._table(loop.federation.tasks, min(room, SHOWN_ROUNDS)))
        return Panel(Group(*above, *below), title="MAS Edge", border_style="cyan")

    @staticmethod
    def _headline(coordinator: Coordinator, loop: ServerLoop | None) -> Text:
        if loop is not None and loop.finished:
            return Text(loop.finished, style="bold red" if loop.failed else "bold green")
        if loop is None or loop.round is None:
            return Text("no bundle yet: no rounds run", style="yellow")
        shown = loop.round
        doing = "training" if shown.work == "train" else "measuring"
        if loop.building:
            return _line(f"round {shown.number}: waiting for its ONNX Runtime training artifacts", style="yellow")
        current = coordinator.open
        if current is None or not current.members:
            waiting = f"{len(coordinator.online)} online"
            return _line(f"round {shown.number}: waiting for devices, {waiting}", style="yellow")
        return _line(
            f"round {shown.number}: {shown.phase} {shown.index + 1}/{shown.rounds}, "
            f"{len(current.results)} of {len(current.members)} devices done, {doing} {shown.group}",
            style="bold cyan",
        )

    def _table(self, tasks: Tasks, number: int) -> Table:
        """Return a table with a line for each round, a column for each task of the round's group."""
        table = Table(box=None, pad_edge=False)
        table.add_column("round", justify="right")
        table.add_column("phase", no_wrap=True)
        for name in (*tasks, "sum"):
            table.add_column(name, justify="right", no_wrap=True, min_width=6)
        table.add_column("by", justify="right")
        table.add_column("s", justify="right", no_wrap=True)
        for row, results in list(self._rounds)[-number:]:
            closed, is_test = row.round, row.round.work == "evaluate"
            evaluations = [(r.loss, r.examples) for r in results.values() if isinstance(r, Evaluation)]
            losses = weighted_losses(evaluations) or round_report(row, results).train_loss
            table.add_row(
                str(closed.number),
                f"{closed.phase} {closed.index + 1}/{closed.rounds}"
                if closed.work == "train"
                else f"{closed.phase} (test)",
                *(f"{losses[task]:.4f}" if task in losses else "" for task in tasks),
                f"{sum(losses.values()):.4f}" if losses else "–",
                str(len(results)),
                f"{(row.closed_s or row.started_s) - row.started_s:.1f}",
                style="green" if is_test else None,
            )
        return table


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _head(table: Table) -> int:
    """Return how many lines a table has above its rows."""
    return int(table.show_header) + int(table.title is not None)


def affinity_table(affinities: Affinities) -> Table:
    """Return the affinity matrix as a table: rows are i, columns j of i→j."""
    table = Table(title="affinity i→j", box=None, title_justify="left", pad_edge=False)
    table.add_column("", no_wrap=True)
    for task in affinities.tasks:
        table.add_column(task, justify="right", no_wrap=True, min_width=7)
    for task, row in zip(affinities.tasks, affinities.values, strict=True):
        cells = (Text("–") if math.isnan(v) else Text(f"{v:+.4f}", style="red" if v < 0 else "green") for v in row)
        table.add_row(task, *cells)
    return table


def device_table(coordinator: Coordinator) -> Table:
    """Return the fleet as a table: each device and its work; of many devices those at work come first."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    members = coordinator.open.members if coordinator.open else {}
    fleet = sorted(
        coordinator.devices.items(), key=lambda item: (members.get(item[0]) not in UNANSWERED, not item[1].online)
    )
    if len(fleet) <= SHOWN_DEVICES:
        fleet.sort(key=lambda item: item[0])
    for name, device in fleet[:SHOWN_DEVICES]:
        state: str = members.get(name, "idle") if device.online else "offline"
        progress = device.progress
        busy = progress is not None and state == "asked"
        detail = f"{progress.stage} {progress.done}/{progress.total}" if progress is not None and busy else state
        table.add_row(Text("●", style="green" if device.online else "red"), name, detail)
    if more := fleet[SHOWN_DEVICES:]:
        table.add_row("…", f"{len(more)} more", f"{sum(device.online for _, device in more)} of them online")
    return table
