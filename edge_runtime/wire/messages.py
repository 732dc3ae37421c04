"""Control messages: small typed JSON, validated when decoded.

Rules
- A message is at most MAX_MESSAGE_BYTES and matches its schema exactly; unknown fields are refused.
- A message never names its sender: the topic does, and the broker has checked it against the sender's token.
- A result that arrives twice (of one device, group and round) counts once.
- A number that was not measured is null; no number is infinite or NaN.
- A text is printable and on one line, so that it can be shown as it is.
- The other side accepts whatever `encode` returns: a message that its own schema refuses is never sent.

A device sends Hello when it comes online, when the server calls the roll, and every few minutes; the server answers,
then or later, with a plan. It may tell a device that trains to Stop, and to send what it has done:

    device                                   server
    Hello                       ──►
                                ◄──          Plan (train or evaluate)
    Need (manifest, weights)    ──►
                                ◄──          runs of chunks
    Progress …                  ──►
    Update (announces a blob)   ──►
                                ◄──          Need
    runs of chunks              ──►
                                ◄──          Ack
    FinalEnergy                 ──►
                                ◄──          Finished
"""

# coverage: every branch

from typing import Annotated, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

from devices.cli.text import PRINTABLE, printable
from edge_runtime.wire.blob import Blob, ChunkRun
from edge_runtime.wire.compression import Scheme, Updates
from edge_runtime.wire.energy import Energy
from edge_runtime.wire.errors import MessageInvalid, reason
from edge_runtime.wire.linear import DualSteps, LinearFacts, LinearWork
from edge_runtime.wire.names import MAX_TASKS, Digest, GroupId, TaskName, Tasks
from edge_runtime.wire.personal import Held, OwnParts, Personal, passes
from edge_runtime.wire.training import Optimization, ProbeMethod, TaskWeighting

MAX_MESSAGE_BYTES = 64 * 1024
MAX_ROUNDS = 1_000_000
MAX_TEXT = 500
MAX_RUNS = 64
MAX_PROBES = 10**9

Count = Annotated[int, Meta(ge=0, le=2**53)]
RoundNumber = Annotated[int, Meta(ge=0, le=MAX_ROUNDS)]
Text = Annotated[str, Meta(max_length=MAX_TEXT, pattern=PRINTABLE)]
"""Printable, on one line: what the other side says is shown to people. `text` makes one."""
Positive = Annotated[float, Meta(gt=0, le=1e9)]
NonNegative = Annotated[float, Meta(ge=0, le=1e18)]
Number = Annotated[float, Meta(ge=-1e18, le=1e18)]
"""Bounded so that sums over a fleet stay finite."""
Losses = Annotated[dict[TaskName, Number], Meta(max_length=MAX_TASKS)]
Counts = Annotated[dict[TaskName, Count], Meta(max_length=MAX_TASKS)]
Row = Annotated[tuple[Number, ...], Meta(min_length=1, max_length=MAX_TASKS)]
Matrix = Annotated[tuple[Row, ...], Meta(min_length=1, max_length=MAX_TASKS)]
DataSplit = Literal["train", "val", "test"]
OrtTrainingUse = Literal["off", "auto", "require"]
"""A device's use of ONNX Runtime training artifacts: never, where the bundle has them, or nothing else."""
Precision = Literal["fp32", "fp16", "int8"]
"""The number format in which activations and their gradients travel in split learning."""
WorkStage = Literal["download", "train", "probe", "evaluate", "upload"]
RefusalReason = Literal[
    "memory", "battery", "heat", "no_data", "bundle", "diverged", "busy", "encoder_server", "limits", "error"
]
T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=str.lower, tag_field="type"):
    """Base of every control message."""


class Affinity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Affinities over the probed batches of one device in one round: mean[i][j] is that of task i to task j, (T, T).

    `variance` is the sample variance over the batches, null when fewer than two were probed.
    """

    tasks: Tasks
    count: Annotated[int, Meta(ge=1, le=2**31)]
    mean: Matrix
    variance: Matrix | None

    def __post_init__(self) -> None:
        _check_tasks(self.tasks)
        for matrix in (self.mean, self.variance):
            if matrix is not None and {len(self.tasks)} != {len(matrix), *map(len, matrix)}:
                raise ValueError(
                    f"an affinity matrix of {len(self.tasks)} tasks is {len(self.tasks)} × {len(self.tasks)}"
                )


def _check_tasks(tasks: Tasks) -> None:
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"a task is named twice in {'+'.join(tasks)}")


class Training(Optimization, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of local training in a round."""

    epochs: Annotated[int, Meta(ge=1, le=1000)]
    first_epoch: Count
    """Epochs that this group has trained before the round; with the seed it fixes the order of the samples."""
    seed: Count
    probe_every: Annotated[int, Meta(ge=0, le=1_000_000)]
    """Batches between two probes of affinities, counted through the group's rounds; 0 for never."""
    probe: ProbeMethod = "exact"
    weighting: TaskWeighting | None = None
    """The weighting of the tasks' losses; null for the plain sum."""
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """The part of the epochs' steps that this device is asked for, the first ones."""


class Hello(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device is online: its software, data and memory."""

    software: Text
    engine: Text
    platform: Text
    examples: dict[DataSplit, Count]
    tasks: Tasks
    memory_bytes: Count | None
    ort_training: OrtTrainingUse = "off"
    """With other than `off` the server makes training artifacts for the groups that it forms."""

    def __post_init__(self) -> None:
        _check_tasks(self.tasks)


class SplitLearning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The encoder server computes the encoder, the device stem and heads; see edge_runtime.wire.split_learning."""

    precision: Annotated[Precision, Meta(description="how activations and their gradients are sent")] = "fp32"
    parts: Annotated[
        int, Meta(ge=1, le=64, description="micro-batches of a step: device, link and server then work at once")
    ] = 1
    noise: Annotated[
        float,
        Meta(
            ge=0,
            le=100,
            description="standard deviation of Gaussian noise on embeddings, in root mean squares of the embedding",
        ),
    ] = 0.0


class Plan(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server asks for a round of work on one group of tasks."""

    work: Literal["train", "evaluate"]
    round: RoundNumber
    phase: Annotated[str, Meta(max_length=32, pattern=PRINTABLE)]
    group: GroupId
    tasks: Tasks
    bundle: Blob
    """The group's manifest."""
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]
    """The server's Ed25519 signature of the manifest."""
    weights: Blob
    training: Training | None = None
    """For work = train."""
    updates: Updates = Updates()
    """The form in which the trained weights are sent."""
    split_learning: SplitLearning | None = None
    """Set where the encoder is computed by the encoder server: `weights` are then of stem and heads alone."""
    personal: Personal | None = None
    """What the device has of its own, and trains and evaluates with; null where there is one model for all."""
    held: Held | None = None
    """For work = train: what is held to a centre, in place of the proximal term of `training`."""
    linear: LinearWork | None = None
    """The device's part where the bundle's model is linear; null for models of graphs."""
    data_split: DataSplit | None = None
    """For work = evaluate."""
    deadline_s: Positive
    """Seconds from now until the server stops waiting."""

    def __post_init__(self) -> None:
        _check_tasks(self.tasks)
        if (self.work == "train") != (self.training is not None) or (self.work == "evaluate") != (
            self.data_split is not None
        ):
            raise ValueError("a plan to train has `training`, a plan to evaluate has `data_split`")

    @property
    def passes(self) -> float:
        """How often training goes over the device's data; 0 for a plan to evaluate."""
        if isinstance(self.linear, DualSteps):
            return self.linear.passes
        return 0 if self.training is None else passes(self.training.epochs, self.personal)

    @property
    def files(self) -> tuple[Blob, ...]:
        """The files of the plan: the manifest, the weights, the first values of what is never sent, a centre."""
        start = (self.personal.start,) if isinstance(self.personal, OwnParts) else ()
        return (self.bundle, self.weights, *start, *(() if self.held is None else (self.held.centre,)))


class Need(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for runs of chunks of a blob, to be sent in this order and after all that was asked for before."""

    digest: Digest
    runs: Annotated[tuple[ChunkRun, ...], Meta(min_length=1, max_length=MAX_RUNS)]


class LossProbe(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for the marker: an empty run at this number, behind all that was asked for before: fetch.py."""

    digest: Digest
    number: Annotated[int, Meta(ge=0, lt=MAX_PROBES)]


class Progress(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device's progress in its round: for people who watch, never for decisions."""

    round: RoundNumber
    stage: WorkStage
    done: Count
    total: Count


class Refusal(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device does not take part in this round, for a reason."""

    round: RoundNumber
    group: GroupId
    reason: RefusalReason
    detail: Text


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The memory plan that a device trained by: micro-batch, and the encoder's stages kept, recomputed and frozen.

    The budget is null where none was known, the predicted peak where the bundle or the system gives no figure.
    """

    budget_bytes: Count | None
    predicted_peak_bytes: Count | None
    micro_batch: Annotated[int, Meta(ge=1, le=2**31)]
    kept: Annotated[int, Meta(ge=0, le=100)]
    recomputed: Annotated[int, Meta(ge=0, le=100)]
    frozen: Annotated[int, Meta(ge=0, le=100)]


class Update(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device has trained: its weights, or their change, are ready to be fetched."""

    round: RoundNumber
    group: GroupId
    weights: Blob
    """The update's file."""
    scheme: Scheme = "fp32"
    """The format of the file."""
    base: Digest | None = None
    """The digest of the weights that the file is a change to; null where it has the weights in full."""
    examples: Counts
    """Examples trained on, by task, in each epoch: fewer where it was stopped. The encoder's count is the largest."""
    train_loss: Losses
    val_loss: Losses | None
    """Of the weights that the device received, before it trained; null without validation data."""
    affinity: Affinity | None
    wall_s: NonNegative
    peak_rss_bytes: Count | None
    bytes_down: Count
    energy: Energy | None
    """Up to this message; FinalEnergy has the total."""
    memory: MemoryUse | None = None
    """Null for training by ONNX Runtime training artifacts, which have no memory plan, and of linear models."""
    linear: LinearFacts | None = None
    """Of a linear model."""

    def __post_init__(self) -> None:
        if (self.scheme == "fp32") != (self.base is None):
            raise ValueError("an update has `base` unless its scheme is fp32")


class Evaluation(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The losses of the plan's weights on a device's data, and the metrics of their predictions."""

    round: RoundNumber
    group: GroupId
    loss: Losses
    examples: Counts
    wall_s: NonNegative
    peak_rss_bytes: Count | None
    bytes_down: Count
    energy: Energy | None
    """Up to this message; FinalEnergy has the total."""
    metrics: Losses | None = None
    """By task, for those whose bundle names a metric, over all of this device's examples; null where there is none."""


class FinalEnergy(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan's energy account when the plan is over, its upload included; it changes nothing in the round.

    Sent however the plan ended; of several the last one counts.
    """

    round: RoundNumber
    group: GroupId
    energy: Energy


class Ack(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server has accepted a device's update or evaluation, or has dropped it for the reason in `detail`."""

    round: RoundNumber
    group: GroupId
    accepted: bool
    detail: Text = ""


class RollCall(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server asks who is there: it has connected, or knows nothing of a device that it hears. Hello answers."""


class Stop(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server asks a device that trains to send what it has done until now: its result counts by its examples."""

    round: RoundNumber
    group: GroupId


class Finished(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The federation has ended; a device may leave."""

    detail: Text = ""


class Status(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device's retained status; the broker publishes `offline` for it as its last will."""

    state: Literal["online", "offline"]


DeviceMessage = Hello | Need | LossProbe | Progress | Refusal | Update | Evaluation | FinalEnergy
"""The messages that a device may send."""
ServerMessage = RollCall | Plan | Stop | Need | LossProbe | Ack | Finished
"""The messages that the server may send."""

_DEVICE = cast("msgspec.json.Decoder[DeviceMessage]", msgspec.json.Decoder(DeviceMessage))
_SERVER = cast("msgspec.json.Decoder[ServerMessage]", msgspec.json.Decoder(ServerMessage))
_STATUS = msgspec.json.Decoder(Status)


def text(words: object) -> str:
    """Return a message's text: printable, on one line, at most MAX_TEXT characters."""
    return printable(words, MAX_TEXT)


def encode(message: Message | Status) -> bytes:
    """Return the message as JSON. Raises MessageInvalid if it is too large or has a value that decoding refuses."""
    kind = type(message).__name__
    try:
        data = msgspec.json.encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageInvalid(f"a {kind} of {len(data)} bytes is over the {MAX_MESSAGE_BYTES} allowed")
        msgspec.json.decode(data, type=type(message))
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError) as exc:
        raise MessageInvalid(f"a {kind} that its own schema refuses was not sent: {reason(exc)}") from exc
    return data


def decode_device(data: bytes | memoryview) -> DeviceMessage:
    """Decode a message from a device. Raises MessageInvalid."""
    return _decode(_DEVICE, data)


def decode_server(data: bytes | memoryview) -> ServerMessage:
    """Decode a message from the server. Raises MessageInvalid."""
    return _decode(_SERVER, data)


def decode_status(data: bytes | memoryview) -> Status:
    """Decode a device's status. Raises MessageInvalid."""
    return _decode(_STATUS, data)


def _decode(decoder: "msgspec.json.Decoder[T]", data: bytes | memoryview) -> T:
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageInvalid(f"a message of {len(data)} bytes is over the {MAX_MESSAGE_BYTES} allowed")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise MessageInvalid(f"message not understood: {reason(exc)}") from exc
