"""ONNX Runtime training artifacts made during a run, by a process that stands in for their environment."""

import os
import sys
import time
from pathlib import Path

import pytest

from broker_server.report import build as reports
from broker_server.rounds.ort_training_process import ArtifactBuilder, ArtifactsUnavailable, artifact_users
from broker_server.rounds.presence import DeviceState
from edge_runtime.wire import manifest as manifests
from edge_runtime.wire.messages import Hello

LIMIT_S = 300.0
STAND_IN = """#!{python}
import os, subprocess, sys, time
from pathlib import Path

sys.path.insert(0, os.getcwd())
import msgspec
from edge_runtime.wire import bundle_folder, manifest as manifests
from edge_runtime.wire.blob import describe
from edge_runtime.wire.files import write_atomic

how = Path({how!r}).read_text()
_, export, split, bundle, _, groups, _, out, _, python = sys.argv[1:]
assert (export, split, python) == ("export", "split", sys.argv[0]), sys.argv
bundle, out = Path(bundle), Path(out)
with open({starts!r}, "a") as starts:
    starts.write(groups + "\\n")
if how == "fails":
    print("Traceback", flush=True)
    print("onnxruntime-training 1.19.2 has no CPU gradient for Round", file=sys.stderr)
    sys.exit(3)
if how == "silent":
    sys.exit(7)
if how == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path({how!r} + ".child").write_text(str(child.pid))
    time.sleep(600)
whole = bundle_folder.read_folder(bundle)
made = dict(whole.ort_training.groups)
for group in groups.split(";")[: 1 if how == "lacks" else None]:
    name = "+".join(group.split(","))
    files = {{}}
    for kind in ("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint"):
        data = f"{{kind}} of {{name}}".encode()
        files[kind.removesuffix(".onnx")] = manifests.File(digest=describe(data).digest, size_bytes=len(data))
        write_atomic(bundle_folder.artifact_path(out, name, kind), b"broken" if how == "broken" else data)
    made[name] = manifests.Artifacts(**files, max_relative_error=1e-4)
if how == "other":
    whole = msgspec.structs.replace(whole, name="other")
replaced = msgspec.structs.replace(whole.ort_training, groups=made)
write_atomic(out / bundle_folder.MANIFEST, manifests.encode(msgspec.structs.replace(whole, ort_training=replaced)))
"""


@pytest.fixture
def stand_in(tmp_path):
    """A Python of an onnxruntime-training environment that makes small artifacts; `how` says what becomes of them."""
    program, how = tmp_path / "python", tmp_path / "how"
    program.write_text(STAND_IN.format(python=sys.executable, how=str(how), starts=str(tmp_path / "starts")))
    program.chmod(0o700)

    def make(text="well"):
        how.write_text(text)
        return program

    return make


@pytest.fixture
def building(world, stand_in):
    """A server that makes artifacts; every start of it has a builder of its own."""
    makers = []

    def make(how="well", limit_s=1e6, **settings):
        python = stand_in(how)
        folder = "ort_training"

        def maker(world):
            state = world.config.state
            makers.append(
                ArtifactBuilder(python=python, bundle=world.root / "bundle", folder=state / folder, limit_s=limit_s)
            )
            return makers[-1]

        return world(maker=maker, **settings)

    yield make
    for maker in makers:
        maker.stop()


def starts(tmp_path):
    path = tmp_path / "starts"
    return path.read_text().splitlines() if path.is_file() else []


def training_models(device):
    """The training models that a device has fetched."""
    read = [device.blobs.read(digest) for digest in device.blobs.digests()]
    return sorted(data.decode() for data in read if data.startswith(b"training_model"))


@pytest.mark.process
def test_artifacts_of_decided_groups_reach_the_devices_that_ask(building, tmp_path):
    world = building()
    x, y = world.device("x", ort_training="require"), world.device("y")
    for device in (x, y):
        device.start()
    world.until_finished()
    assert world.loop.finished == "all rounds are done"
    assert starts(tmp_path) == ["a,b,c", "a,b;c"]  # of the merged group, which the bundle has none of, then the split's
    assert training_models(x) == [f"training_model.onnx of {g}" for g in ("a+b", "a+b+c", "c")]
    assert training_models(y) == []
    assert any("ONNX Runtime training artifacts for a+b, c are within 1.0e-04" in note for note in world.watcher.notes)
    plans = {plan.round: manifests.decode(x.blobs.read(plan.bundle.digest)) for plan in x.plans}
    assert plans[0].ort_training is None
    for plan in x.plans[1:]:
        assert list(plans[plan.round].ort_training.groups) == [plan.group]
    assert reports.build(world.journal).ort_training == {
        group: reports.OrtTrainingReport(max_relative_error=1e-4, problem=None) for group in ("a+b", "a+b+c", "c")
    }
    assert not (world.config.state / "ort_training").exists()


def test_artifacts_are_not_made_where_nobody_asks(building, tmp_path):
    world = building()
    world.device("x").start()
    world.device("y").start()
    world.until_finished()
    assert starts(tmp_path) == []
    assert reports.build(world.journal).ort_training == {}


@pytest.mark.process
def test_artifacts_for_a_device_that_comes_late_are_made_before_the_next_round(building, tmp_path):
    world = building(split_rounds=3)
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: world.loop.round and world.loop.round.phase == "split")
    z = world.device("z", ort_training="auto")
    z.start()
    world.until_finished()
    assert starts(tmp_path) == ["a,b;c"]
    assert training_models(z) == ["training_model.onnx of a+b", "training_model.onnx of c"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("fails", "onnxruntime-training 1.19.2 has no CPU gradient for Round; "),
        ("silent", "ended with code 7"),
        ("other", "it is of another bundle"),
        ("lacks", "it has nothing for c"),
        ("broken", "training_model.onnx is not the file that the manifest names"),
    ],
)
def test_artifacts_that_fail_leave_the_portable_graphs(building, how, why):
    world = building(how, merged_rounds=1)
    x = world.device("x", ort_training="auto")
    x.start()
    world.device("y").start()
    world.until_finished()
    assert world.loop.finished == "all rounds are done"
    if how != "lacks":  # which has the merged group
        assert training_models(x) == []
    problem = reports.build(world.journal).ort_training["c"].problem
    assert why.rstrip("; ") in problem
    said = [note for note in world.watcher.notes if note.startswith("no ONNX Runtime training artifacts for a+b, c:")]
    assert len(said) == 1  # once, though several rounds follow
    assert why in said[0]
    assert said[0].endswith("the devices train with the portable graphs")


@pytest.mark.process
def test_artifacts_that_fail_make_the_round_wait_for_other_devices_where_all_need_them(building):
    world = building("fails")
    x, y = world.device("x", ort_training="require"), world.device("y", ort_training="require")
    x.start()
    y.start()
    said = (
        "no ONNX Runtime training artifacts for a+b+c: onnxruntime-training 1.19.2 has no CPU gradient for Round; "
        "x, y ask for nothing else and are left out, the others train with the portable graphs"
    )
    world.until(lambda: said in world.watcher.notes)
    for _ in range(50):
        world.loop.step(0.25)
    assert world.loop.finished is None
    assert {plan.work for plan in x.plans + y.plans} == {"evaluate"}
    world.device("z").start()
    world.until_finished()
    assert world.loop.finished == "all rounds are done"


@pytest.mark.process
def test_artifacts_that_fail_leave_out_the_devices_that_need_them(building):
    world = building("fails", merged_rounds=1)
    for name, use in (("x", "require"), ("y", "off"), ("z", "auto")):
        world.device(name, ort_training=use).start()
    world.until_finished()
    assert not world.loop.failed
    assert any("x ask for nothing else and are left out, the others" in note for note in world.watcher.notes)


def test_artifacts_of_a_server_without_the_environment_are_said_to_be_off(world):
    world = world()
    world.device("x", ort_training="auto").start()
    world.device("y").start()
    world.until_finished()
    off = "this server makes none for groups that it decides on: ort_training.python is not set"
    assert world.loop.finished == "all rounds are done"
    assert f"x asks for ONNX Runtime training artifacts: {off}" in world.watcher.notes
    assert any(note.startswith(f"no ONNX Runtime training artifacts for a+b, c: {off}") for note in world.watcher.notes)


def test_artifacts_of_a_bundle_without_a_forward_graph(world, stand_in, tmp_path):
    python = stand_in()
    make = lambda _: ArtifactBuilder(python=python, bundle=tmp_path / "bundle", folder=tmp_path / "made", limit_s=1.0)  # noqa: E731
    world = world()
    world.maker = make
    world.crash()
    world.device("x", ort_training="auto").start()
    world.device("y").start()
    world.until_finished()
    assert starts(tmp_path) == []
    assert "compile it with --ort-training auto" in reports.build(world.journal).ort_training["c"].problem


@pytest.mark.process
def test_server_that_crashes_while_artifacts_are_made_makes_them_again(building, tmp_path):
    world = building("hangs")
    x, y = world.device("x", ort_training="require"), world.device("y")
    for device in (x, y):
        device.start()
    world.until(lambda: bool(starts(tmp_path)))
    assert world.loop.building == (("a", "b", "c"),)
    wait_for(tmp_path / "how.child")
    (tmp_path / "how").write_text("well")
    world.crash()
    world.until_finished()
    assert starts(tmp_path) == ["a,b,c", "a,b,c", "a,b;c"]
    assert len(training_models(x)) == 3
    rows = [row.round.phase for row in world.journal.rounds()]
    assert rows.count("split") == 4


@pytest.mark.process
def test_server_that_crashes_at_any_event_ends_the_same(building, tmp_path):
    reference = building()
    reference.device("x", step=1.0, ort_training="auto").start()
    reference.device("y", step=3.0).start()
    reference.until_finished()
    expected = reports.models(reference.journal, reference.blobs)
    crashed = type(reference)(tmp_path / "crashed", maker=reference.maker)
    x = crashed.device("x", step=1.0, ort_training="auto")
    x.start()
    crashed.device("y", step=3.0).start()
    until_s = time.monotonic() + LIMIT_S
    while not crashed.loop.finished:
        assert time.monotonic() < until_s
        crashed.loop.step(0.25)
        if crashed.loop.building:
            time.sleep(0.01)
        if crashed.random.random() < 0.01:
            crashed.crash()
    assert crashed.loop.finished == "all rounds are done"
    assert reports.models(crashed.journal, crashed.blobs) == expected
    assert len(training_models(x)) == 3


@pytest.mark.process
def test_builder_that_takes_too_long_is_ended_with_all_it_started(stand_in, tiny_ort_training, tmp_path):
    folder, bundle = tiny_ort_training
    maker = ArtifactBuilder(python=stand_in("hangs"), bundle=folder, folder=tmp_path / "made", limit_s=5.0)
    assert maker.poll(0.0) is None
    maker.start(bundle, [("a", "b")], 0.0)
    assert maker.busy
    child = wait_for(tmp_path / "how.child")
    assert maker.poll(4.9) is None
    with pytest.raises(ArtifactsUnavailable, match="not ready after 5 s"):
        maker.poll(5.0)
    assert not maker.busy
    assert ends(int(child))


@pytest.mark.process
def test_builder_that_is_stopped_ends_its_process(stand_in, tiny_ort_training, tmp_path):
    folder, bundle = tiny_ort_training
    maker = ArtifactBuilder(python=stand_in("hangs"), bundle=folder, folder=tmp_path / "made", limit_s=60.0)
    maker.start(bundle, [("a",)], 0.0)
    child = wait_for(tmp_path / "how.child")
    maker.stop()
    assert ends(int(child))
    assert not (tmp_path / "made").exists()
    maker.stop()


@pytest.mark.process
def test_builder_whose_python_cannot_be_started(tiny_ort_training, tmp_path):
    folder, bundle = tiny_ort_training
    program = tmp_path / "python"
    program.write_text("not a program")
    maker = ArtifactBuilder(python=program, bundle=folder, folder=tmp_path / "made", limit_s=60.0)
    with pytest.raises(ArtifactsUnavailable, match="python: Permission denied"):
        maker.start(bundle, [("a",)], 0.0)


def test_builder_deletes_what_an_earlier_one_left(tmp_path):
    left = tmp_path / "made" / "left"
    left.mkdir(parents=True)
    ArtifactBuilder(python=tmp_path, bundle=tmp_path, folder=tmp_path / "made", limit_s=1.0)
    assert not left.exists()


def test_asking_names_devices_by_what_they_want():
    def device(use):
        return DeviceState(
            hello=Hello(
                software="", engine="", platform="", examples={}, tasks=("a",), memory_bytes=None, ort_training=use
            )
        )

    fleet = {"z": device("require"), "y": device("off"), "x": device("auto"), "w": DeviceState()}
    assert artifact_users(fleet) == (["x", "z"], ["z"])


@pytest.fixture
def tiny_ort_training(make_tiny_bundle, tmp_path):
    """A bundle with a forward graph, and its manifest."""
    return tmp_path / "forward", make_tiny_bundle(tmp_path / "forward", forward=b"forward graph")


def wait_for(path: Path) -> str:
    """What a file says, once there is something in it."""
    until_s = time.monotonic() + LIMIT_S
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < until_s
        time.sleep(0.01)
    return path.read_text()


def ends(pid: int) -> bool:
    """Whether a process ends: it is gone, or waits for init to notice."""
    until_s = time.monotonic() + LIMIT_S
    while time.monotonic() < until_s:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False
