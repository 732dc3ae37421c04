"""The host of a general model in one round: a desk and a replica for each device, and one engine for all.

What it is given came over a network: a message that is not understood is refused with a reason, counted, and changes
nothing; one device's silence or nonsense does not keep the others. How many devices there may be at once is the
caller's to set, because each takes the memory of a replica (replica.py) and of its parts on their way (desk.py).
"""

from collections import Counter, deque
from collections.abc import Callable

from edge_runtime.split_learning.replica import EncoderReplica, SharedEncoder
from edge_runtime.split_learning.session import (
    Action,
    ApplyStep,
    Compute,
    DropSession,
    EncoderSession,
    FinishSession,
    Reply,
    RestoreState,
    SaveState,
)
from edge_runtime.training.engine import EngineError, Graph
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Precision, Training
from edge_runtime.wire.split_learning import MessageLayout, RefusalReason, SplitHeader, SplitMessage, decode, encode
from edge_runtime.wire.tensors import Vector

Sent = list[tuple[str, bytes]]
"""What is to be sent: to which device, and what."""


class EncoderServer:
    """Computes the encoder for devices. `weights` (P,) are laid out by `manifest.general`."""

    def __init__(
        self,
        manifest: Manifest,
        graph: Callable[[str], Graph],
        weights: Vector,
        settings: Training | None,
        round_number: int,
        *,
        layout: MessageLayout | None = None,
        most_devices: int = 16,
        most_parts: int = 8,
        idle_s: float = 120.0,
        precision: Precision = "fp32",
        state: Callable[[str], Vector | None] = lambda _: None,
        finished: Callable[[str, EncoderReplica], None] = lambda *_: None,
    ) -> None:
        """Without `settings` nothing is trained: devices measure losses.

        `layout` is of messages with a batch of the settings at most, unless another is given. `state` is a device's
        optimizer's state of an earlier round; who has none begins at zero. `finished` is given what a device has
        taught, before the device hears that it has finished; then it is freed.
        """
        self.errors: Counter[str] = Counter()
        """Messages that were dropped, by device."""
        self._manifest, self._graph, self._weights, self._settings = manifest, graph, weights, settings
        if layout is None:
            assert settings is not None
            layout = MessageLayout.of(manifest, settings.batch)
        self._layout = layout
        self._round = round_number
        self._most_devices, self._most_parts = most_devices, most_parts
        self._idle_s, self._precision = idle_s, precision
        self._state, self._finished = state, finished
        self._desks: dict[str, EncoderSession] = {}
        self._replicas: dict[str, SharedEncoder] = {}

    @property
    def working(self) -> tuple[str, ...]:
        """The devices that have begun and neither finished nor left."""
        return tuple(sorted(self._replicas))

    def received(self, device: str, data: bytes | memoryview, now_s: float) -> Sent:
        """A device sent this; what is to be sent now."""
        try:
            message = decode(self._layout, data)
        except MessageInvalid as exc:
            self.errors[device] += 1
            return [(device, self._refusal(SplitHeader(kind="refused", round=self._round), "invalid", str(exc)))]
        header, desk = message.header, self._desks.get(device)
        if self._settings is None and header.kind in {"embedding", "gradient", "mark"}:
            return [(device, self._refusal(header, "invalid", "in this round losses are measured"))]
        begins = header.kind == "begin" and not header.step
        if desk is None or (desk.ended is not None and begins and not desk.is_begun_by(header)):
            if not begins:
                return [(device, self._refusal(header, "step", "begin at 0: the host has nothing of you"))]
            if len(self._replicas) >= self._most_devices:
                return [(device, self._refusal(header, "full", f"{self._most_devices} devices are here"))]
            desk = self._desks[device] = EncoderSession(
                self._round, now_s, most_parts=self._most_parts, idle_s=self._idle_s, precision=self._precision
            )
            self._replicas[device] = self._replica(device)
        return self._do(device, desk, desk.received(message, now_s), now_s)

    def tick(self, now_s: float) -> Sent:
        """Time has passed: devices that are silent for too long leave the round."""
        sent: Sent = []
        for device, desk in self._desks.items():
            sent += self._do(device, desk, desk.tick(now_s), now_s)
        return sent

    def _replica(self, device: str) -> SharedEncoder:
        if self._settings is None:
            return SharedEncoder(self._manifest, self._graph, self._weights)
        return EncoderReplica(self._manifest, self._graph, self._weights, self._settings, self._state(device))

    def _do(self, device: str, desk: EncoderSession, actions: list[Action], now_s: float) -> Sent:
        sent: Sent = []
        pending = deque(actions)
        while pending:
            action = pending.popleft()
            if isinstance(action, Reply):
                sent.append((device, self._encoded(action.message)))
            elif isinstance(action, DropSession):
                del self._replicas[device]
                header = SplitHeader(kind="refused", round=self._round)
                sent.append((device, self._refusal(header, "timeout", action.detail)))
            elif isinstance(action, Compute):
                pending.extend(self._compute(device, desk, action, now_s))
            elif isinstance(action, FinishSession):
                replica = self._replicas.pop(device)
                if isinstance(replica, EncoderReplica):
                    self._finished(device, replica)
            else:
                self._change(self._trained(device), action)
        return sent

    def _trained(self, device: str) -> EncoderReplica:
        """A device's replica in a round that trains."""
        replica = self._replicas[device]
        assert isinstance(replica, EncoderReplica)
        return replica

    def _compute(self, device: str, desk: EncoderSession, work: Compute, now_s: float) -> list[Action]:
        try:
            if work.kind == "forward":
                found = self._trained(device).forward(work.part, work.arrays, work.seed)
            elif work.kind == "backward":
                found = self._trained(device).backward(work.part, work.arrays)
            else:
                found = self._replicas[device].predict(work.arrays)
        except EngineError as exc:
            return desk.failed(str(exc))
        return desk.computed(found, now_s)

    @staticmethod
    def _change(replica: EncoderReplica, action: ApplyStep | SaveState | RestoreState) -> None:
        if isinstance(action, ApplyStep):
            replica.apply()
        elif isinstance(action, SaveState):
            replica.keep()
        else:
            replica.go_back(action.step)

    def _encoded(self, message: SplitMessage) -> bytes:
        try:
            return encode(message)
        except MessageInvalid as exc:
            return self._refusal(message.header, "invalid", str(exc))

    @staticmethod
    def _refusal(about: SplitHeader, why: RefusalReason, detail: str) -> bytes:
        header = SplitHeader(
            kind="refused",
            round=about.round,
            step=about.step,
            part=about.part,
            about=about.kind,
            reason=why,
            detail=detail[:500],
        )
        return encode(SplitMessage(header=header))
