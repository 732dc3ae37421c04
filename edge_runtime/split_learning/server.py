"""The encoder server in one round: a session and a replica for each device, and one engine for all.

Its input comes over a network. A message that is not understood is refused with a reason, counted, and changes nothing.
A device that is silent or sends nonsense does not stop the others. The caller sets how many devices there may be at
once, because each takes the memory of a replica (replica.py) and of its parts on their way (session.py).
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
from edge_runtime.training.engine import EngineError
from edge_runtime.training.graph_cache import Graphs
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Precision, Training
from edge_runtime.wire.split_learning import (
    MessageLayout,
    RefusalReason,
    SplitHeader,
    SplitMessage,
    decode,
    encode,
    refusal,
)
from edge_runtime.wire.tensors import Vector

Outgoing = list[tuple[str, bytes]]
"""Messages to send, each with its device."""


class EncoderServer:
    """Computes the shared encoder for devices. `weights` (P,) are laid out by `manifest.encoder_table`."""

    def __init__(
        self,
        manifest: Manifest,
        graph: Graphs,
        weights: Vector,
        settings: Training | None,
        round_number: int,
        *,
        layout: MessageLayout | None = None,
        max_devices: int = 16,
        max_parts: int = 8,
        idle_s: float = 120.0,
        precision: Precision = "fp32",
        initial_state: Callable[[str], Vector | None] = lambda _: None,
        on_finished: Callable[[str, EncoderReplica], None] = lambda *_: None,
    ) -> None:
        """Without `settings` nothing is trained: the round evaluates.

        `layout` is by default of messages with the settings' batch at most. `initial_state` gives the optimizer's state
        of a device from the previous round; None begins at zero. `on_finished` is called with a device's replica before
        the device gets its reply; then the replica is freed.
        """
        self.errors: Counter[str] = Counter()
        """Messages that were not understood, by device."""
        self._manifest, self._graph, self._weights, self._settings = manifest, graph, weights, settings
        if layout is None:
            assert settings is not None
            layout = MessageLayout.of(manifest, settings.batch)
        self._layout = layout
        self._round = round_number
        self._max_devices, self._max_parts = max_devices, max_parts
        self._idle_s, self._precision = idle_s, precision
        self._initial_state, self._on_finished = initial_state, on_finished
        self._sessions: dict[str, EncoderSession] = {}
        self._replicas: dict[str, SharedEncoder] = {}

    @property
    def active_devices(self) -> tuple[str, ...]:
        """The devices that have begun and neither finished nor left."""
        return tuple(sorted(self._replicas))

    def on_message(self, device: str, data: bytes | memoryview, now_s: float) -> Outgoing:
        """Handle a device's message; return the messages to send."""
        try:
            message = decode(self._layout, data)
        except MessageInvalid as exc:
            self.errors[device] += 1
            return [(device, self._refusal(SplitHeader(kind="refused", round=self._round), "invalid", str(exc)))]
        header, session = message.header, self._sessions.get(device)
        if self._settings is None and header.kind in {"embedding", "gradient", "mark"}:
            return [(device, self._refusal(header, "invalid", "this round evaluates: it trains nothing"))]
        begins = header.kind == "begin" and not header.step
        if session is None or (session.ended is not None and begins and not session.is_begun_by(header)):
            if not begins:
                return [
                    (
                        device,
                        self._refusal(header, "step", "begin at 0: this device has no session"),
                    )
                ]
            if len(self._replicas) >= self._max_devices:
                return [
                    (
                        device,
                        self._refusal(header, "full", f"{self._max_devices} devices are at work"),
                    )
                ]
            session = self._sessions[device] = EncoderSession(
                self._round, now_s, max_parts=self._max_parts, idle_s=self._idle_s, precision=self._precision
            )
            self._replicas[device] = self._replica(device)
        return self._execute(device, session, session.on_message(message, now_s), now_s)

    def on_tick(self, now_s: float) -> Outgoing:
        """End the sessions of devices that have been silent for too long; return the messages to send."""
        sent: Outgoing = []
        for device, session in self._sessions.items():
            sent += self._execute(device, session, session.on_tick(now_s), now_s)
        return sent

    def _replica(self, device: str) -> SharedEncoder:
        if self._settings is None:
            return SharedEncoder(self._manifest, self._graph, self._weights)
        return EncoderReplica(self._manifest, self._graph, self._weights, self._settings, self._initial_state(device))

    def _execute(self, device: str, session: EncoderSession, actions: list[Action], now_s: float) -> Outgoing:
        sent: Outgoing = []
        pending = deque(actions)
        while pending:
            action = pending.popleft()
            if isinstance(action, Reply):
                sent.append((device, self._encode(action.message)))
            elif isinstance(action, DropSession):
                del self._replicas[device]
                header = SplitHeader(kind="refused", round=self._round)
                sent.append((device, self._refusal(header, "timeout", action.detail)))
            elif isinstance(action, Compute):
                pending.extend(self._compute(device, session, action, now_s))
            elif isinstance(action, FinishSession):
                replica = self._replicas.pop(device)
                if isinstance(replica, EncoderReplica):
                    self._on_finished(device, replica)
            else:
                self._change(self._replica_in_training(device), action)
        return sent

    def _replica_in_training(self, device: str) -> EncoderReplica:
        """Return a device's replica in a round that trains."""
        replica = self._replicas[device]
        assert isinstance(replica, EncoderReplica)
        return replica

    def _compute(self, device: str, session: EncoderSession, work: Compute, now_s: float) -> list[Action]:
        try:
            if work.kind == "forward":
                found = self._replica_in_training(device).forward(work.part, work.arrays, work.seed)
            elif work.kind == "backward":
                found = self._replica_in_training(device).backward(work.part, work.arrays)
            else:
                found = self._replicas[device].predict(work.arrays)
        except EngineError as exc:
            return session.on_failed(str(exc))
        return session.on_computed(found, now_s)

    @staticmethod
    def _change(replica: EncoderReplica, action: ApplyStep | SaveState | RestoreState) -> None:
        if isinstance(action, ApplyStep):
            replica.apply_step()
        elif isinstance(action, SaveState):
            replica.save()
        else:
            replica.restore(action.step)

    def _encode(self, message: SplitMessage) -> bytes:
        try:
            return encode(message)
        except MessageInvalid as exc:
            return self._refusal(message.header, "invalid", str(exc))

    @staticmethod
    def _refusal(about: SplitHeader, reason: RefusalReason, detail: str) -> bytes:
        return encode(refusal(about, reason, detail))
