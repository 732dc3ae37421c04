"""One simulated federation: the server's loop and the devices' agents, on one timeline.

The files are those of the field: the server's state folder and one for each device. So a run that was killed
goes on from its journals, and ends with the same weights.
"""

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from broker_server.report import build as reports
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.federation import Federation
from broker_server.rounds.journal import FederationJournal
from broker_server.server.config import GENERAL, ServerConfig
from broker_server.server.dispatcher import Dispatcher
from broker_server.server.keys import load_or_create
from broker_server.server.loop import ServerLoop, Watcher
from broker_server.server.state import StateFolder
from broker_server.simulation.device import DeviceContext, ModelledWork, SimulatedDevice
from broker_server.simulation.errors import SimulationFailed, SimulationStopped
from broker_server.simulation.fleet import Board, Fleet, WorkCosts, drop_after, work_time
from broker_server.simulation.network import LinkSpeed, MemoryLink, Network
from broker_server.simulation.output import DEVICES, SERVER
from broker_server.simulation.run_cache import GroupRuns, RunCache
from broker_server.simulation.timeline import Timeline
from broker_server.simulation.traffic import traffic_of
from broker_server.strategies.settings import PERSONAL
from edge_runtime.wire.bundle_folder import read_folder
from edge_runtime.wire.messages import Hello, Plan
from edge_runtime.wire.signing import public_hex
from edge_runtime.wire.topics import Topics

TICK_S = 0.25
PATIENCE = 5
"""How many deadlines in a row may pass without a round that closes."""
LINGER_S = 3600.0
"""How long, of simulated time, a device that is away when the federation ends is waited for."""


@dataclass(frozen=True, kw_only=True)
class RunSetting:
    """Values that the runs of an experiment share."""

    data: Mapping[str, Path]
    """The data set of each device."""
    fleet: Fleet
    costs: WorkCosts
    cache: RunCache
    workers: Executor
    stop: threading.Event
    """Set when all runs are to end where they are."""


def simulate(folder: Path, config: ServerConfig, bundle: Path, setting: RunSetting, watcher: Watcher) -> reports.Report:
    """Run a federation to its end, or go on with it; its report, also written to `folder`.

    Raises SimulationFailed, SimulationStopped, SplitImpossible, FederationChanged, BundleInvalid; OSError as the file
    system does.
    """
    with contextlib.ExitStack() as stack:
        state = StateFolder(folder / SERVER)
        stack.callback(state.close)
        timeline = Timeline()
        journal, blobs = state.open(timeline.clock)
        stack.callback(journal.close)
        timeline.now_s = _latest_s(journal)
        network = Network(timeline)
        server = network.link(LinkSpeed())
        dispatcher = Dispatcher(
            link=server,
            topics=Topics(config.federation),
            journal=journal,
            blobs=blobs,
            uploads=state.uploads,
            coordinator=Coordinator(config.rounds, journal.hellos(), seed=config.seed, learnt=journal.learnt()),
            show=watcher.note,
            clock=timeline.clock,
            draw=lambda _: 0,
        )
        manifest = read_folder(bundle)
        key = load_or_create(folder / SERVER)
        terms = msgspec.structs.replace(config, state=folder / SERVER).terms(manifest)
        federation = Federation(
            journal=journal,
            blobs=blobs,
            uploads=state.uploads,
            bundle=manifest,
            folder=bundle,
            key=key,
            terms=terms,
        )
        group_runs = GroupRuns(
            federation,
            journal,
            blobs,
            aggregation=terms.aggregation,
            cache=setting.cache,
            timeline=timeline,
            context=_context(config, setting),
        )
        loop = ServerLoop(federation, dispatcher, watcher, next_round=group_runs.next)
        loop.start()
        if loop.finished is None:
            devices = _seats(folder, config, bundle, public_hex(key), network, setting, loop, group_runs, stack)
            server.wake = lambda: loop.step(0.0)
            _until_finished(loop, devices, timeline, PATIENCE * config.rounds.deadline_s, setting.stop)
        if loop.failed:
            raise SimulationFailed(str(loop.finished))
        group_runs.keep()
        built = reports.build(journal)
        reports.write(folder, built, reports.models(journal, blobs))
    for left in (folder / DEVICES, folder / SERVER / GENERAL):
        shutil.rmtree(left, ignore_errors=True)
    return built


def _until_finished(
    loop: ServerLoop,
    devices: Sequence[SimulatedDevice],
    timeline: Timeline,
    patience_s: float,
    stop: threading.Event,
) -> None:
    """Let time pass until the federation has finished and every device knows.

    Raises SimulationFailed, SimulationStopped.
    """
    begun, since_s = loop.round, timeline.now_s

    def tick() -> None:
        loop.step(0.0)
        for device in devices:
            device.step()
        timeline.after(TICK_S, tick)

    tick()
    while not (
        loop.finished is not None and loop.dispatcher.outgoing.is_empty and all(device.ended for device in devices)
    ):
        if stop.is_set():
            raise SimulationStopped
        timeline.step()
        if loop.round is not begun:
            begun, since_s = loop.round, timeline.now_s
        if loop.finished is not None and timeline.now_s > since_s + LINGER_S:
            return
        if loop.finished is None and timeline.now_s > since_s + patience_s:
            counts = ", ".join(f"{count} × {what}" for what, count in sorted(loop.dispatcher.counts.items()))
            raise SimulationFailed(f"no round has closed in {patience_s:g} simulated seconds ({counts})")


def _seats(
    folder: Path,
    config: ServerConfig,
    bundle: Path,
    server_key: str,
    network: Network,
    setting: RunSetting,
    loop: ServerLoop,
    group_runs: GroupRuns,
    stack: contextlib.ExitStack,
) -> list[SimulatedDevice]:
    timeline = network.timeline
    threads = stack.enter_context(ThreadPoolExecutor(len(setting.data), "device"))
    topics = Topics(config.federation)
    devices = []
    for name, data in sorted(setting.data.items()):
        board = setting.fleet.of(name)
        link = network.link(board.link, will=topics.status(name))
        device = SimulatedDevice(
            DeviceContext(
                name=name,
                data=data,
                state=folder / DEVICES / name,
                federation=config.federation,
                server_key=server_key,
                bundle=bundle,
                link=link,
                board=board,
                clock=timeline.clock,
                after=timeline.after,
                begin_work=_rule(name, board, link, setting, config.seed, timeline, loop),
                computed=partial(group_runs.computed, name),
                exchanged=partial(_exchanged, loop),
                workers=setting.workers,
                threads=threads,
            )
        )
        stack.callback(device.close)
        link.wake = device.step
        devices.append(device)
    return devices


def _rule(
    name: str,
    board: Board,
    link: MemoryLink,
    setting: RunSetting,
    seed: int,
    timeline: Timeline,
    loop: ServerLoop,
) -> Callable[[Plan, Hello], ModelledWork]:
    def begin(plan: Plan, hello: Hello) -> ModelledWork:
        examples = hello.examples.get("train" if plan.data_split is None else plan.data_split, 0)
        crosses = traffic_of(plan, hello.examples, loop.federation.manifests.bundle)
        time = work_time(plan, examples, hello.tasks, setting.costs, board, setting.fleet.encoder_server, crosses)
        lost_s = drop_after(plan, name, board, seed, time.total_s)
        if lost_s is not None:
            timeline.after(lost_s, lambda: link.lose(board.away_s))
        held_up_s = 0.0 if lost_s is None or crosses is None else board.away_s
        is_open = loop.round is not None and loop.round.number == plan.round
        return ModelledWork(
            seconds=time.total_s + held_up_s,
            board_s=time.board_s,
            opened=loop.federation.encoder_round(plan) if plan.split_learning is not None and is_open else None,
        )

    return begin


def _exchanged(loop: ServerLoop, plan: Plan, up_bytes: int, down_bytes: int) -> None:
    """Count what has crossed, if the round is still going on."""
    current = loop.coordinator.open
    if current is not None and current.plan.round == plan.round:
        current.traffic.add(up_bytes=up_bytes, down_bytes=down_bytes)


def _latest_s(journal: FederationJournal) -> float:
    times = [time_s for row in journal.rounds() for time_s in (row.started_s, row.closed_s) if time_s is not None]
    return max(times, default=0.0)


def _context(config: ServerConfig, setting: RunSetting) -> str:
    """Return everything that all group runs of a run depend on beyond their plans, as JSON."""
    boards = {name: setting.fleet.of(name) for name in sorted(setting.data)}
    data = {name: _fingerprint(path) for name, path in sorted(setting.data.items())}
    rounds = config.rounds
    rules = [rounds.min_devices, rounds.clients_per_round, rounds.quorum, rounds.deadline_s, config.seed]
    facts: list[object] = [rules, boards, data, setting.costs]
    if config.is_apart:
        facts.append(setting.fleet.encoder_server)
    if rounds.mode == "buffered":
        facts.append(rounds)
    if config.grouping.strategy in PERSONAL:
        facts.append([config.grouping.strategy, config.personal])
    return msgspec.json.encode(facts).decode()


def _fingerprint(data: Path) -> str:
    """Return a data set by the names, sizes and times of its files."""
    facts = [
        [str(path.relative_to(data)), path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(data.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()
