"""The simulated boards and encoder server: speed, memory, link and power. And the rules of their time."""

# coverage: every branch

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_server.simulation.network import LinkSpeed
from broker_server.simulation.traffic import Traffic
from edge_runtime.wire.messages import Plan, Training
from edge_runtime.wire.names import DeviceId, TaskName, Tasks

Speed = Annotated[float, Meta(gt=0, le=1e6)]
Rate = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
BytesPerS = Annotated[float, Meta(gt=0)]
UNBOUNDED_BYTES = 1 << 50


class Board(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One simulated board, or the values common to a fleet."""

    speed: Speed = 1.0
    """Of one core of the machine that simulates; 0.25 takes four times as long."""
    memory_bytes: Annotated[int, Meta(ge=1)] = UNBOUNDED_BYTES
    """The budget of the agent's memory plan."""
    up_bytes_per_s: BytesPerS = math.inf
    down_bytes_per_s: BytesPerS = math.inf
    latency_s: Seconds = 0.0
    busy_w: Annotated[float, Meta(ge=0, le=1e6)] = 6.4
    idle_w: Annotated[float, Meta(ge=0, le=1e6)] = 2.7
    drop_rate: Rate = 0.0
    """How often a board loses its link while it works on a plan of training …"""
    away_s: Seconds = 60.0
    """… and for how long."""

    @property
    def link(self) -> LinkSpeed:
        """The board's link."""
        return LinkSpeed(
            up_bytes_per_s=self.up_bytes_per_s, down_bytes_per_s=self.down_bytes_per_s, latency_s=self.latency_s
        )


class SimulatedEncoderServer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The encoder server in split learning, for each device as if it were the only one."""

    speed: Speed = 1.0
    """Of one core of the machine that simulates; 4 takes a quarter of the time."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values common to all boards, and those of single boards."""

    board: Board = Board()
    boards: dict[DeviceId, dict[str, float | int]] = {}
    encoder_server: SimulatedEncoderServer = SimulatedEncoderServer()

    def of(self, device: str) -> Board:
        """One device's board. Raises msgspec.ValidationError for a key that a board does not have."""
        return _changed(self.board, self.boards.get(device, {}))

    def having(self, keys: Mapping[str, float | int]) -> "Fleet":
        """Return the fleet with other values common to all boards. Raises msgspec.ValidationError."""
        return msgspec.structs.replace(self, board=_changed(self.board, keys))


def _changed(board: Board, keys: Mapping[str, float | int]) -> Board:
    return msgspec.convert(msgspec.to_builtins(board) | dict(keys), Board)


class WorkCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """CPU seconds on one core of the simulating machine, measured once for an experiment.

    A training step of some tasks costs `train_s` + Σ `train_head_s` for each sample, and so does an evaluation; a
    probe of all tasks costs `probe_s` for a batch.
    """

    train_s: float
    train_head_s: dict[TaskName, float]
    evaluate_s: float
    evaluate_head_s: dict[TaskName, float]
    probe_s: float
    train_stem_s: float | None = None
    """The stem's part of `train_s`; null where no method needs it."""
    evaluate_stem_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class WorkTime:
    """Simulated seconds of a plan: of the board, of the encoder server, and of the traffic between them."""

    board_s: float
    encoder_server_s: float = 0.0
    traffic_s: float = 0.0

    @property
    def total_s(self) -> float:
        """One after the other."""
        return self.board_s + self.encoder_server_s + self.traffic_s


def additive(whole: float, alone: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return the costs of the encoder and of each head from those of all tasks together and of each task alone.

    `alone[i]` is encoder + head i and `whole` is encoder + all heads. Nothing is less than 0.
    """
    if len(alone) == 1:
        return whole, dict.fromkeys(alone, 0.0)
    encoder = min(max(0.0, (sum(alone.values()) - whole) / (len(alone) - 1)), *alone.values())
    return encoder, {task: value - encoder for task, value in alone.items()}


def work_time(
    plan: Plan,
    examples: int,
    tasks: Tasks,
    costs: WorkCosts,
    board: Board,
    encoder_server: SimulatedEncoderServer,
    traffic: Traffic | None = None,
) -> WorkTime:
    """Return the modelled time of a plan: how long the board works, and waits in split learning.

    With `traffic` the encoder server computes the encoder, and the costs of the stem are known.
    """
    here = [task for task in plan.tasks if task in tasks]
    settings = plan.training
    samples, probed_s = float(examples), 0.0
    if settings is None:
        body_s, stem_s, head_s = costs.evaluate_s, costs.evaluate_stem_s, costs.evaluate_head_s
    else:
        share = (len(here) / max(1, len(costs.train_head_s))) ** 2  # a probe is of all ordered pairs
        # What a linear model measures takes about a pass, whatever its steps.
        samples = settings.share * max(1.0, plan.passes) * examples
        probed_s = probes(settings, examples) * share * costs.probe_s
        body_s, stem_s, head_s = costs.train_s, costs.train_stem_s, costs.train_head_s
    heads_s = sum(head_s[task] for task in here)
    if traffic is None:
        return WorkTime(board_s=(samples * (body_s + heads_s) + probed_s) / board.speed)
    assert stem_s is not None
    return WorkTime(
        board_s=(samples * (stem_s + heads_s) + probed_s) / board.speed,
        encoder_server_s=samples * (body_s - stem_s) / encoder_server.speed,
        traffic_s=traffic.seconds(board.link),
    )


def asked_steps(settings: Training, examples: int) -> int:
    """Return how many steps a plan asks for."""
    return math.ceil(settings.share * settings.epochs * -(-examples // settings.batch))


def probes(settings: Training, examples: int) -> int:
    """How many batches a plan probes."""
    if not settings.probe_every:
        return 0
    first = settings.first_epoch * -(-examples // settings.batch)
    last = first + asked_steps(settings, examples)
    return -(-last // settings.probe_every) - -(-first // settings.probe_every)


def drop_after(plan: Plan, device: str, board: Board, seed: int, seconds: float) -> float | None:
    """When in its work a board loses its link; None if it keeps it. Drawn for the device, the group and its round."""
    if plan.training is None or not board.drop_rate:
        return None
    draw = random.Random(f"{seed}/{device}/{plan.group}/{plan.training.first_epoch}")  # noqa: S311
    return draw.random() * seconds if draw.random() < board.drop_rate else None
