import math
from typing import get_args

import msgspec
import pytest
import samples
from hypothesis import assume, example, given
from hypothesis import strategies as st

from edge_runtime.wire import messages
from edge_runtime.wire.blob import MAX_BLOB_BYTES, MAX_CHUNK_BYTES, MAX_CHUNKS, MIN_CHUNK_BYTES, Blob, ChunkRun
from edge_runtime.wire.energy import MAX_FLAGS, MAX_J, MAX_SOURCE, MAX_W, Energy, Phase, PhaseEnergy
from edge_runtime.wire.errors import MessageInvalid
from edge_runtime.wire.messages import (
    MAX_MESSAGE_BYTES,
    MAX_PROBES,
    Ack,
    Affinity,
    Evaluation,
    FinalEnergy,
    Finished,
    Hello,
    LossProbe,
    Need,
    Plan,
    Progress,
    Refusal,
    RollCall,
    Status,
    Stop,
    Training,
    Update,
    decode_device,
    decode_server,
    decode_status,
    encode,
)
from edge_runtime.wire.training import FixedWeighting, GradNormWeighting, UncertaintyWeighting

TASK = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
TASKS = st.lists(TASK, min_size=1, max_size=5, unique=True).map(tuple)
DIGEST = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
COUNT = st.integers(0, 2**53)
ROUND = st.integers(0, 1_000_000)
NUMBER = st.floats(-1e18, 1e18)
NOT_NEGATIVE = st.floats(0, 1e18)
PRINTED = st.characters(exclude_categories=["Cs", "Cc", "Cf", "Zl", "Zp"])
TEXT = st.text(PRINTED, max_size=500)
GROUP = st.from_regex(r"[a-z][a-z0-9_+]{0,199}", fullmatch=True)
SPLIT = st.sampled_from(["train", "val", "test"])
COUNTS = st.dictionaries(TASK, COUNT, max_size=5)
LOSSES = st.dictionaries(TASK, NUMBER, max_size=5)
BLOB = st.builds(
    Blob,
    digest=DIGEST,
    size_bytes=st.integers(1, MAX_BLOB_BYTES),
    chunk_bytes=st.integers(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES),
)
RATE = st.floats(0, 10, exclude_min=True)
WEIGHTING = st.one_of(
    st.none(),
    st.builds(FixedWeighting, weights=st.dictionaries(TASK, st.floats(0, 1e6), max_size=5)),
    st.builds(GradNormWeighting, alpha=st.floats(0, 10), lr=RATE),
    st.builds(UncertaintyWeighting, lr=RATE),
)
TRAINING = st.builds(
    Training,
    epochs=st.integers(1, 1000),
    first_epoch=COUNT,
    batch=st.integers(1, 65536),
    lr=st.floats(0, 1e3, exclude_min=True),
    momentum=st.floats(0, 1, exclude_max=True),
    weight_decay=st.floats(0, 1),
    seed=COUNT,
    probe_every=st.integers(0, 1_000_000),
    probe=st.sampled_from(["exact", "encoder", "representation"]),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    beta2=st.floats(0, 1, exclude_max=True),
    epsilon=st.floats(0, 1, exclude_min=True),
    clip_norm=st.floats(0, 1e9),
    proximal_mu=st.floats(0, 1e3),
    weighting=WEIGHTING,
)


@st.composite
def affinities(draw):
    tasks = draw(TASKS)
    row = st.lists(NUMBER, min_size=len(tasks), max_size=len(tasks)).map(tuple)
    matrix = st.lists(row, min_size=len(tasks), max_size=len(tasks)).map(tuple)
    count = draw(st.integers(1, 2**31))
    return Affinity(tasks=tasks, count=count, mean=draw(matrix), variance=draw(st.none() | matrix))


def plans(work):
    train = work == "train"
    return st.builds(
        Plan,
        work=st.just(work),
        round=ROUND,
        phase=st.text(PRINTED, max_size=32),
        group=GROUP,
        tasks=TASKS,
        bundle=BLOB,
        signature=st.from_regex(r"[0-9a-f]{128}", fullmatch=True),
        weights=BLOB,
        training=TRAINING if train else st.none(),
        data_split=st.none() if train else SPLIT,
        deadline_s=st.floats(0, 1e9, exclude_min=True),
    )


JOULES = st.none() | st.floats(0, MAX_J)
PHASES = st.dictionaries(
    st.sampled_from(get_args(Phase)),
    st.builds(PhaseEnergy, seconds=st.floats(0, 1e9), energy_j=JOULES, uncertainty_j=JOULES),
)
ENERGY = st.builds(
    Energy,
    source=st.text(PRINTED, min_size=1, max_size=MAX_SOURCE),
    covers=st.none() | TEXT,
    estimated=st.booleans(),
    energy_j=JOULES,
    uncertainty_j=JOULES,
    idle_w=st.none() | st.floats(0, MAX_W),
    sample_rate_hz=st.none() | st.floats(0, 1e12),
    seconds=st.floats(0, 1e9),
    measured_s=st.floats(0, 1e9),
    gap_s=st.floats(0, 1e9),
    phases=PHASES,
    temperature_max_c=st.none() | st.floats(-273, 1000),
    cpu_min_hz=st.none() | st.floats(0, 1e12),
    throttled=st.none() | st.lists(TASK, max_size=MAX_FLAGS).map(tuple),
)
MEASURED = {"wall_s": NOT_NEGATIVE, "peak_rss_bytes": st.none() | COUNT, "energy": st.none() | ENERGY}
RUN = st.builds(ChunkRun, first=st.integers(0, MAX_CHUNKS - 1), count=st.integers(1, MAX_CHUNKS))
NEED = st.one_of(
    st.builds(Need, digest=DIGEST, runs=st.lists(RUN, min_size=1, max_size=64).map(tuple)),
    st.builds(LossProbe, digest=DIGEST, number=st.integers(0, MAX_PROBES - 1)),
)
DEVICE = st.one_of(
    st.builds(
        Hello,
        software=TEXT,
        engine=TEXT,
        platform=TEXT,
        examples=st.dictionaries(SPLIT, COUNT),
        tasks=TASKS,
        memory_bytes=st.none() | COUNT,
    ),
    NEED,
    st.builds(
        Progress,
        round=ROUND,
        stage=st.sampled_from(["download", "train", "probe", "evaluate", "upload"]),
        done=COUNT,
        total=COUNT,
    ),
    st.builds(
        Refusal,
        round=ROUND,
        group=GROUP,
        reason=st.sampled_from(["memory", "battery", "heat", "no_data", "bundle", "diverged", "busy", "error"]),
        detail=TEXT,
    ),
    st.builds(
        Update,
        round=ROUND,
        group=GROUP,
        weights=BLOB,
        examples=COUNTS,
        train_loss=LOSSES,
        val_loss=st.none() | LOSSES,
        affinity=st.none() | affinities(),
        bytes_down=COUNT,
        **MEASURED,
    ),
    st.builds(
        Evaluation,
        round=ROUND,
        group=GROUP,
        loss=LOSSES,
        examples=COUNTS,
        bytes_down=COUNT,
        metrics=st.none() | LOSSES,
        **MEASURED,
    ),
    st.builds(FinalEnergy, round=ROUND, group=GROUP, energy=ENERGY),
)
SERVER = st.one_of(
    plans("train"),
    plans("evaluate"),
    NEED,
    st.builds(Ack, round=ROUND, group=GROUP, accepted=st.booleans(), detail=TEXT),
    st.builds(Finished, detail=TEXT),
    st.just(RollCall()),
)
PROGRESS = Progress(round=1, stage="train", done=2, total=3)
D = "0" * 64


@given(DEVICE)
def test_device_message_round_trips(message):
    assert decode_device(encode(message)) == message
    assert decode_device(memoryview(encode(message))) == message


@given(SERVER)
def test_server_message_round_trips(message):
    assert decode_server(encode(message)) == message


@pytest.mark.parametrize("state", ["online", "offline"])
def test_status_round_trips(state):
    assert decode_status(encode(Status(state=state))) == Status(state=state)


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xff")
@example(b'{"\xff": 1}')
def test_random_bytes_raise_message_invalid_alone(data):
    for decode in (decode_device, decode_server, decode_status):
        with pytest.raises(MessageInvalid):
            decode(data)


@given(DEVICE, st.data())
def test_altered_message_is_another_message_or_invalid(message, data):
    content = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_device(bytes(content))
    except MessageInvalid as exc:
        assert len(str(exc)) < 300
        assert str(exc).isprintable()


@given(SERVER, st.data())
def test_truncated_message_is_invalid(message, data):
    content = encode(message)
    with pytest.raises(MessageInvalid):
        decode_server(content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.slow
@given(DEVICE, SERVER)
def test_message_of_the_other_side_is_invalid(said_by_device, said_by_server):
    assume(not isinstance(said_by_device, Need | LossProbe) and not isinstance(said_by_server, Need | LossProbe))
    with pytest.raises(MessageInvalid):
        decode_server(encode(said_by_device))
    with pytest.raises(MessageInvalid):
        decode_device(encode(said_by_server))


def test_decode_refuses_a_message_that_is_too_large():
    with pytest.raises(MessageInvalid, match=r"a message of 65537 bytes is over the 65536 allowed"):
        decode_device(b" " * (MAX_MESSAGE_BYTES + 1))


def test_encode_refuses_a_message_that_is_too_large():
    tasks = tuple(f"t{i}" for i in range(32))
    rows = tuple(tuple(math.pi * 1e-200 for _ in tasks) for _ in tasks)
    affinity = Affinity(tasks=tasks, count=1, mean=rows, variance=rows)
    update = samples.update(train_loss={f"{'t' * 24}{i}": 1.0 for i in range(2000)}, affinity=affinity)
    with pytest.raises(MessageInvalid, match="over the 65536 allowed"):
        encode(update)
    fitting = msgspec.structs.replace(update, train_loss={})
    assert decode_device(encode(fitting)) == fitting


def test_evaluation_of_a_device_that_knows_no_metrics_is_taken():
    content = msgspec.json.decode(encode(samples.evaluation()))
    del content["metrics"]
    assert decode_device(msgspec.json.encode(content)).metrics is None


@pytest.mark.parametrize(
    "message",
    [
        samples.evaluation(loss={"depth": math.nan}),
        samples.evaluation(loss={}, metrics={"depth": math.inf}),
        samples.evaluation(loss={}, metrics={"../depth": 0.5}),
        samples.evaluation(loss={}, metrics={f"t{i}": 0.5 for i in range(33)}),
        Affinity(tasks=("a",), count=1, mean=((math.inf,),), variance=None),
        Refusal(round=1, group="g", reason="error", detail="x" * 501),
        Refusal(round=1, group="g", reason="error", detail="\ud800"),
        Refusal(round=1, group="g\n", reason="error", detail=""),
        Progress(round=1, stage="train", done=2**70, total=1),
        Need(digest=D, runs=()),
    ],
)
def test_encode_refuses_what_the_other_side_would(message):
    with pytest.raises(MessageInvalid, match="was not sent"):
        encode(message)


@pytest.mark.parametrize(("scheme", "base"), [("fp32", D), ("int8", None)])
def test_update_of_a_change_without_its_base_is_refused(scheme, base):
    with pytest.raises(ValueError, match="unless its scheme is fp32"):
        samples.update(scheme=scheme, base=base)


@pytest.mark.parametrize("change", [{"tasks": ("a", "a")}, {"mean": ((1.0, 2.0),)}, {"variance": ((1.0,), (1.0,))}])
def test_affinity_of_another_shape_is_refused(change):
    with pytest.raises(ValueError, match="twice|is 2 × 2"):
        Affinity(
            **{"tasks": ("a", "b"), "count": 1, "mean": ((1.0, 2.0), (3.0, 4.0)), "variance": None, **change},
        )


@pytest.mark.parametrize(
    ("work", "training", "data_split"),
    [
        ("train", None, None),
        ("train", "some", "val"),
        ("evaluate", None, None),
        ("evaluate", "some", None),
        ("evaluate", "some", "val"),
    ],
)
def test_plan_without_what_its_work_needs_is_refused(work, training, data_split):
    with pytest.raises(ValueError, match="a plan to train has"):
        samples.plan(work=work, training=samples.TRAINING if training else None, data_split=data_split)


@pytest.mark.parametrize(
    "odd",
    [
        b'"weighting":{"type":"gradnorm","alpha":-1}',
        b'"weighting":{"type":"gradnorm","lr":0}',
        b'"weighting":{"type":"learnt"}',
        b'"weighting":{"type":"fixed","weights":{"A":1}}',
        b'"weighting":{"type":"fixed","weights":{"a":1e7}}',
        b'"weighting":{"type":"fixed","weights":{' + b",".join(b'"t%d":1' % i for i in range(33)) + b"}}",
        b'"optimizer":"adam"',
        b'"probe":"all"',
        b'"beta2":1.0',
        b'"epsilon":0',
        b'"clip_norm":-1',
        b'"proximal_mu":1e9',
    ],
)
def test_training_with_an_option_that_makes_no_sense_is_refused(odd):
    plain = {"epochs": 1, "first_epoch": 0, "batch": 1, "lr": 0.1, "momentum": 0, "weight_decay": 0, "seed": 0}
    said = msgspec.json.encode({**plain, "probe_every": 0})
    assert msgspec.json.decode(said, type=Training).weighting is None
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(said.replace(b"{", b"{" + odd + b",", 1), type=Training)


def test_repeated_field_counts_once_and_is_still_checked():
    assert decode_device(encode(PROGRESS).replace(b'"done":2', b'"done":1,"done":2')) == PROGRESS
    with pytest.raises(MessageInvalid):
        decode_device(encode(PROGRESS).replace(b'"done":2', b'"done":-1,"done":2'))


def test_every_message_belongs_to_one_side_or_both():
    kinds = set(messages.Message.__subclasses__())
    assert kinds == {
        Hello,
        RollCall,
        Plan,
        Stop,
        Need,
        LossProbe,
        Progress,
        Refusal,
        Update,
        Evaluation,
        FinalEnergy,
        Ack,
        Finished,
    }
