"""What people see while a federation runs: a live view in a terminal, one line for each round elsewhere."""

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

from broker_server.aggregation.fedavg import weighted_losses
from broker_server.grouping.affinity import Affinities
from broker_server.report.build import round_report
from broker_server.report.energy import label
from broker_server.rounds.actions import Result
from broker_server.rounds.coordinator import UNANSWERED, Coordinator
from broker_server.rounds.journal import RoundRow
from broker_server.server.loop import Aggregator
from edge_runtime.wire.messages import Evaluation
from edge_runtime.wire.names import Tasks

SHOWN_ROUNDS = 30
SHOWN_DEVICES = 6
SHOWN_NOTES = 2
LEAST_ROUNDS = 3
_FRAME = 5
"""Lines of the frame, the headline, the rounds' header and the prompt."""


def round_line(row: RoundRow, results: Mapping[str, Result]) -> str:
    """A closed round in one line."""
    about = row.assignment
    head = f"round {about.round:>3}  {about.phase:<7} {about.index + 1}/{about.rounds}  {about.group}"
    if about.work == "evaluate":
        evaluations = [(r.loss, r.examples) for r in results.values() if isinstance(r, Evaluation)]
        return f"{head}  test loss {losses_text(weighted_losses(evaluations))}  ({len(results)} devices)"
    report = round_report(row, results)
    cost = "" if report.energy.energy_j is None else f", {label(report.energy)}"
    return f"{head}  train loss {losses_text(report.train_loss)}  ({len(results)} devices, {report.wall_s:.1f} s{cost})"


def losses_text(losses: Mapping[str, float]) -> str:
    """Losses by task and their sum, short."""
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

    def closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """Print a round's line."""
        print(round_line(row, results), file=self._file, flush=True)

    def refresh(self, aggregator: Aggregator) -> None:
        """Nothing: lines stay as they are."""


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

    def closed(self, row: RoundRow, results: Mapping[str, Result]) -> None:
        """Show a round."""
        self._rounds.append((row, dict(results)))
        self._affinities = None

    def refresh(self, aggregator: Aggregator) -> None:
        """Draw everything anew."""
        self._live.update(self.render(aggregator))

    def render(self, aggregator: Aggregator) -> RenderableType:
        """The whole view, cut to the terminal's height: as many of the newest rounds as there is room for."""
        below: list[Table | Text] = []
        federation = aggregator.federation
        if federation is not None:
            if self._affinities is None:
                self._affinities = federation.affinities
            if self._affinities.counts.any():
                below.append(affinity_table(self._affinities))
            for phase in federation.phases:
                if phase.split is not None:
                    groups = "   ".join(" + ".join(group) for group in phase.split.groups)
                    below.append(_line(f"split into {groups}   (score {phase.split.score:.4f})", style="bold"))
        below.append(device_table(aggregator.coordinator))
        below.extend(_line(note, style="dim") for note in self._notes)
        taken = _FRAME + sum(1 if isinstance(part, Text) else part.row_count + _head(part) for part in below)
        room = max(LEAST_ROUNDS, self._live.console.size.height - taken)
        above: list[RenderableType] = [self._headline(aggregator)]
        if self._rounds and federation is not None:
            above.append(self._table(federation.tasks, min(room, SHOWN_ROUNDS)))
        return Panel(Group(*above, *below), title="MAS Edge", border_style="cyan")

    @staticmethod
    def _headline(aggregator: Aggregator) -> Text:
        if aggregator.finished:
            return Text(aggregator.finished, style="bold red" if aggregator.failed else "bold green")
        if aggregator.work is None:
            return Text("no bundle yet: no rounds run", style="yellow")
        about = aggregator.work.assignment
        doing = "training" if about.work == "train" else "measuring"
        if aggregator.making:
            return _line(f"round {about.round}: waiting for its official artifacts", style="yellow")
        current = aggregator.coordinator.open
        if current is None or not current.members:
            waiting = f"{len(aggregator.coordinator.online)} online"
            return _line(f"round {about.round}: waiting for devices, {waiting}", style="yellow")
        counted = sum(state == "counted" for state in current.members.values())
        return _line(
            f"round {about.round}: {about.phase} {about.index + 1}/{about.rounds}, "
            f"{counted} of {len(current.members)} devices done, {doing} {about.group}",
            style="bold cyan",
        )

    def _table(self, tasks: Tasks, number: int) -> Table:
        """A line for each round, a column for each task: a group's rounds have the losses of its tasks alone."""
        table = Table(box=None, pad_edge=False)
        table.add_column("round", justify="right")
        table.add_column("phase", no_wrap=True)
        for name in (*tasks, "sum"):
            table.add_column(name, justify="right", no_wrap=True, min_width=6)
        table.add_column("by", justify="right")
        table.add_column("s", justify="right", no_wrap=True)
        for row, results in list(self._rounds)[-number:]:
            about = row.assignment
            evaluations = [(r.loss, r.examples) for r in results.values() if isinstance(r, Evaluation)]
            losses = weighted_losses(evaluations) or round_report(row, results).train_loss
            table.add_row(
                str(about.round),
                f"{about.phase} {about.index + 1}/{about.rounds}" if about.work == "train" else f"{about.phase} (test)",
                *(f"{losses[task]:.4f}" if task in losses else "" for task in tasks),
                f"{sum(losses.values()):.4f}" if losses else "–",
                str(len(results)),
                f"{(row.closed_s or row.started_s) - row.started_s:.1f}",
                style="green" if about.work == "evaluate" else None,
            )
        return table


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _head(table: Table) -> int:
    """The lines of a table above its rows."""
    return int(table.show_header) + int(table.title is not None)


def affinity_table(affinities: Affinities) -> Table:
    """The affinity matrix: rows are i, columns j of i→j."""
    table = Table(title="affinity i→j", box=None, title_justify="left", pad_edge=False)
    table.add_column("", no_wrap=True)
    for task in affinities.tasks:
        table.add_column(task, justify="right", no_wrap=True, min_width=7)
    for task, row in zip(affinities.tasks, affinities.values, strict=True):
        cells = (Text("–") if math.isnan(v) else Text(f"{v:+.4f}", style="red" if v < 0 else "green") for v in row)
        table.add_row(task, *cells)
    return table


def device_table(coordinator: Coordinator) -> Table:
    """The fleet: who is there and what each is doing; of many, those at work come first."""
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
