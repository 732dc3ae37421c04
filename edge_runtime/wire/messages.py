"""Control messages: small typed JSON, validated when decoded.

Rules
- A message is at most MAX_MESSAGE_BYTES and matches its schema exactly; unknown fields are refused.
- A message never names its sender: the topic does, and the broker has checked it against the sender's token.
- What a device reports twice (a device, a group and a round) counts once.
- A number that was not measured is null; none is infinite or not a number.
- What `encode` gives, the other side takes: a message that its own schema refuses is never sent.

A device sends Hello when it comes online; the server answers, then or later, with work:

    device                                   server
    Hello                       ──►
                                ◄──          Plan (train or evaluate)
    Need (bundle, weights)      ──►
                                ◄──          chunks, on the blob's topic
    Progress …                  ──►
    Update (announces a blob)   ──►
                                ◄──          Need
    chunks                      ──►
                                ◄──          Ack
    Spent                       ──►
                                ◄──          Finished
"""

# coverage: every branch

from typing import Annotated, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

from edge_runtime.wire.blob import MAX_CHUNKS, Blob
from edge_runtime.wire.compression import Scheme, Updates
from edge_runtime.wire.energy import Energy
from edge_runtime.wire.errors import MessageInvalid, reason
from edge_runtime.wire.names import MAX_TASKS, Digest, GroupId, TaskName, Tasks

MAX_MESSAGE_BYTES = 64 * 1024
MAX_ROUNDS = 1_000_000
MAX_TEXT = 500

Count = Annotated[int, Meta(ge=0, le=2**53)]
RoundNumber = Annotated[int, Meta(ge=0, le=MAX_ROUNDS)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Positive = Annotated[float, Meta(gt=0, le=1e9)]
NonNegative = Annotated[float, Meta(ge=0, le=1e18)]
Number = Annotated[float, Meta(ge=-1e18, le=1e18)]
"""Bounded so that sums over a fleet stay finite."""
Losses = Annotated[dict[TaskName, Number], Meta(max_length=MAX_TASKS)]
Counts = Annotated[dict[TaskName, Count], Meta(max_length=MAX_TASKS)]
Row = Annotated[tuple[Number, ...], Meta(min_length=1, max_length=MAX_TASKS)]
Matrix = Annotated[tuple[Row, ...], Meta(min_length=1, max_length=MAX_TASKS)]
DataSplit = Literal["train", "val", "test"]
OfficialUse = Literal["off", "auto", "require"]
"""Whether a device trains with official artifacts: never, where the bundle has them, or with nothing else."""
Precision = Literal["fp32", "fp16", "int8"]
"""How activations and their gradients travel in split training."""
T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=str.lower, tag_field="type"):
    """Base of every control message."""


class Affinity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Affinities over the probed batches of one device in one round: values[i][j] is i→j, (T, T).

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
                raise ValueError(f"an affinity matrix of {len(self.tasks)} tasks is {len(self.tasks)} by as many")


def _check_tasks(tasks: Tasks) -> None:
    if len(set(tasks)) != len(tasks):
        raise ValueError(f"a task is there twice in {'+'.join(tasks)}")


Weight = Annotated[float, Meta(ge=0, le=1e6)]
Rate = Annotated[float, Meta(gt=0, le=10)]
ProbeMethod = Literal["exact", "encoder", "representation"]
"""Affinities by look-ahead, or to first order from the encoder's or the representation's gradients."""


Merging = Literal["sum", "pcgrad", "cagrad"]
"""Tasks' gradients are added, or what pulls against others is taken out first, or the worst-off is helped most."""
CAGradRadius = Annotated[float, Meta(ge=0, lt=1)]


class FixedWeighting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="fixed"):
    """Each task's loss counts so much; 1 for a task that is not named."""

    weights: Annotated[dict[TaskName, Weight], Meta(max_length=MAX_TASKS)] = {}


class GradNormWeighting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gradnorm"):
    """Weights that GradNorm learns."""

    alpha: Annotated[float, Meta(ge=0, le=10)] = 1.5
    lr: Rate = 0.025


class UncertaintyWeighting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="uncertainty"):
    """Weights by learnt uncertainty."""

    lr: Rate = 0.025


TaskWeighting = FixedWeighting | GradNormWeighting | UncertaintyWeighting


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train locally in a round."""

    epochs: Annotated[int, Meta(ge=1, le=1000)]
    first_epoch: Count
    """Epochs of this group before the round: with the seed it fixes the order of the samples."""
    batch: Annotated[int, Meta(ge=1, le=65536)]
    lr: Positive
    momentum: Annotated[float, Meta(ge=0, lt=1)]
    weight_decay: Annotated[float, Meta(ge=0, le=1)]
    seed: Count
    probe_every: Annotated[int, Meta(ge=0, le=1_000_000)]
    """Probe affinities at every so many batches of the group, counted through its rounds; 0 for never."""
    probe: ProbeMethod = "exact"

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """AdamW takes `momentum` as its beta1."""
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Meta(gt=0, le=1)] = 1e-8
    clip_norm: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """Scale a gradient whose Euclidean norm is larger down to it; 0 for never."""
    proximal_mu: Annotated[float, Meta(ge=0, le=1e3)] = 0.0
    """FedProx: add mu · (w − w_received) to the gradient."""
    weighting: TaskWeighting | None = None
    """How much each task's loss counts; null for the plain sum."""
    merging: Merging = "sum"
    """How the tasks' gradients at the representation are merged."""
    cagrad_c: CAGradRadius = 0.4
    """For `cagrad`: how far from their mean it may go, in parts of the mean's length."""


class Hello(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device is online and says what it has."""

    software: Text
    engine: Text
    platform: Text
    examples: dict[DataSplit, Count]
    tasks: Tasks
    memory_bytes: Count | None
    official: OfficialUse = "off"
    """Whether it asks for official artifacts: the server then makes those of the groups that it decides."""

    def __post_init__(self) -> None:
        _check_tasks(self.tasks)


class SplitTraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server's host computes the encoder, and the device stem and heads; see edge_runtime.wire.split_learning."""

    precision: Precision = "fp32"
    """How the arrays of both sides travel."""
    parts: Annotated[int, Meta(ge=1, le=64)] = 1
    """Micro-batches that a step is cut into, some of them on their way at once."""


class Plan(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server asks for a round of work on one group of tasks."""

    work: Literal["train", "evaluate"]
    round: RoundNumber
    phase: Annotated[str, Meta(max_length=32)]
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
    """How to send what was trained."""
    apart: SplitTraining | None = None
    """Where the encoder is computed elsewhere: `weights` are then of stem and heads alone."""
    own_stem: bool = False
    """Whether the device keeps its stem to itself, and trains and measures with that."""
    data_split: DataSplit | None = None
    """For work = evaluate."""
    deadline_s: Positive
    """Seconds from now after which the server no longer waits."""

    def __post_init__(self) -> None:
        _check_tasks(self.tasks)
        if (self.work == "train") != (self.training is not None) or (self.work == "evaluate") != (
            self.data_split is not None
        ):
            raise ValueError("a plan to train has `training`, a plan to evaluate has `data_split`")


class Need(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Please send these chunks of a blob."""

    digest: Digest
    chunks: Annotated[tuple[Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)], ...], Meta(min_length=1, max_length=64)]


class Progress(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a device is in its round: for people who watch, never for decisions."""

    round: RoundNumber
    stage: Literal["download", "train", "probe", "evaluate", "upload"]
    done: Count
    total: Count


class Refusal(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device does not do this round, and why."""

    round: RoundNumber
    group: GroupId
    reason: Literal["memory", "battery", "heat", "no_data", "bundle", "diverged", "busy", "host", "error"]
    detail: Text


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a device has trained in its memory: samples at once, and the encoder's stages by what was done with them.

    The budget is null where none was known, and what was predicted where the bundle or the system does not say.
    """

    budget_bytes: Count | None
    predicted_peak_bytes: Count | None
    micro_batch: Annotated[int, Meta(ge=1, le=2**31)]
    kept: Annotated[int, Meta(ge=0, le=100)]
    recomputed: Annotated[int, Meta(ge=0, le=100)]
    frozen: Annotated[int, Meta(ge=0, le=100)]


class Update(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device has trained: its weights, or how it changed them, wait to be fetched."""

    round: RoundNumber
    group: GroupId
    weights: Blob
    """The update's file."""
    scheme: Scheme = "fp32"
    """How the file is written."""
    base: Digest | None = None
    """Of the weights that the file is a change to; null where it has the weights in full."""
    examples: Counts
    """Examples trained on, by task. The encoder counts the largest of them."""
    train_loss: Losses
    val_loss: Losses | None
    """Of the weights that the device received, before it trained; null without validation data."""
    affinity: Affinity | None
    wall_s: NonNegative
    peak_rss_bytes: Count | None
    bytes_down: Count
    energy: Energy | None
    """Up to this message; Spent says the rest."""
    memory: MemoryUse | None = None
    """Null for training by the official engine, which has no plan."""

    def __post_init__(self) -> None:
        if (self.scheme == "fp32") != (self.base is None):
            raise ValueError("an update has `base` unless its scheme is fp32")


class Evaluation(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device has measured the losses of the weights that it was given, and the metrics of their predictions."""

    round: RoundNumber
    group: GroupId
    loss: Losses
    examples: Counts
    wall_s: NonNegative
    peak_rss_bytes: Count | None
    bytes_down: Count
    energy: Energy | None
    """Up to this message; Spent says the rest."""
    metrics: Losses | None = None
    """By task, of those whose bundle names a metric, over all of this device's examples; null where none was."""


class Spent(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan has cost in the end, its upload included: for the books alone, it changes nothing in the round.

    Said when a plan is over, however it ended; of several the last one counts.
    """

    round: RoundNumber
    group: GroupId
    energy: Energy


class Ack(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The server has a device's update or evaluation, or has dropped it and says why."""

    round: RoundNumber
    group: GroupId
    accepted: bool
    detail: Text = ""


class Finished(Message, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The federation has ended; a device may go."""

    detail: Text = ""


class Status(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device's retained status; the broker publishes `offline` for it as its last will."""

    state: Literal["online", "offline"]


DeviceMessage = Hello | Need | Progress | Refusal | Update | Evaluation | Spent
"""What a device may say."""
ServerMessage = Plan | Need | Ack | Finished
"""What the server may say."""

_DEVICE = cast("msgspec.json.Decoder[DeviceMessage]", msgspec.json.Decoder(DeviceMessage))
_SERVER = cast("msgspec.json.Decoder[ServerMessage]", msgspec.json.Decoder(ServerMessage))
_STATUS = msgspec.json.Decoder(Status)


def encode(message: Message | Status) -> bytes:
    """The message as JSON. Raises MessageInvalid if it is too large or has a value that the other side would refuse."""
    kind = type(message).__name__
    try:
        data = msgspec.json.encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            raise MessageInvalid(f"a {kind} of {len(data)} bytes is over the {MAX_MESSAGE_BYTES} allowed")
        msgspec.json.decode(data, type=type(message))
    except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError) as exc:
        raise MessageInvalid(f"a {kind} that nobody would take was not sent: {reason(exc)}") from exc
    return data


def decode_device(data: bytes | memoryview) -> DeviceMessage:
    """What a device said. Raises MessageInvalid."""
    return _decode(_DEVICE, data)


def decode_server(data: bytes | memoryview) -> ServerMessage:
    """What the server said. Raises MessageInvalid."""
    return _decode(_SERVER, data)


def decode_status(data: bytes | memoryview) -> Status:
    """A device's status. Raises MessageInvalid."""
    return _decode(_STATUS, data)


def _decode(decoder: "msgspec.json.Decoder[T]", data: bytes | memoryview) -> T:
    if len(data) > MAX_MESSAGE_BYTES:
        raise MessageInvalid(f"a message of {len(data)} bytes is over the {MAX_MESSAGE_BYTES} allowed")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise MessageInvalid(f"message not understood: {reason(exc)}") from exc
