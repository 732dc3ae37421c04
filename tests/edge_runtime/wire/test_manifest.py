import hashlib

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.wire.bundle_folder import (
    FORWARD,
    ORT_TRAINING,
    artifact_path,
    check_file,
    graph_path,
    read_fixed,
    read_folder,
    write_folder,
)
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.graph_names import graph_names, input_of, is_input, value_of
from edge_runtime.wire.labels import LabelContract
from edge_runtime.wire.manifest import (
    FORMAT,
    MAX_MANIFEST_BYTES,
    Array,
    Artifacts,
    File,
    FixedTensors,
    Input,
    Manifest,
    OrtTrainingArtifacts,
    Parity,
    Stage,
    Task,
    decode,
    encode,
)
from edge_runtime.wire.tensors import TensorTable, pack


def file_of(data):
    return File(digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def manifest_of(*tasks, **change):
    shapes = {"encoder.w": (2,), **{f"head.{task}.w": (3,) for task in tasks}}
    fields = {
        "format": FORMAT,
        "name": "test",
        "tasks": tuple(
            Task(
                name=task,
                target=Array(shape=(4, 4), dtype="int64"),
                prediction=Array(shape=(1, 4, 4), dtype="float32"),
            )
            for task in tasks
        ),
        "input": Array(shape=(3, 4, 4), dtype="float32"),
        "representation": (Array(shape=(8, 2, 2), dtype="float32"),),
        "values": (),
        "stages": (Stage(reads=("x",), writes=("z.0",), parameters=("w",)),),
        "tensors": TensorTable.of(shapes).tensors,
        "graphs": {name: file_of(name.encode()) for name in graph_names(tasks, 1)},
        "weights": file_of(b"weights"),
        "opset": 17,
        "parity": Parity(max_relative_error=1e-6, worst="head.depth.w", compared=3),
        "versions": {"torch": "2", "export": "0.1"},
    }
    return Manifest(**{**fields, **change})


TWO = manifest_of("depth", "normals")
CONTENT = encode(TWO)


def test_classes_that_mean_no_label_are_those_of_the_contract_or_of_the_metric():
    task = TWO.tasks[0]
    assert task.unlabelled == ()
    before = msgspec.structs.replace(task, ignored=3)
    assert before.unlabelled == (3,)
    contract = LabelContract(classes=1, ignored=(255, -1))
    assert msgspec.structs.replace(before, labels=contract).unlabelled == (255, -1)


def test_contracts_round_trip_and_bundles_of_before_have_none():
    contracts = (LabelContract(classes=5, ignored=(-100, 255)), LabelContract(bounds=(0.0, 1.0), nan=True))
    tasks = tuple(
        msgspec.structs.replace(task, labels=contract, whole_batch=contract.nan)
        for task, contract in zip(TWO.tasks, contracts, strict=True)
    )
    found = decode(encode(msgspec.structs.replace(TWO, tasks=tasks)))
    assert found.tasks == tasks
    assert found.whole_batch
    assert b"labels" not in CONTENT
    assert decode(CONTENT).tasks[0].labels is None


@given(st.sets(st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True), min_size=1, max_size=6))
def test_manifest_round_trips(tasks):
    manifest = manifest_of(*sorted(tasks))
    assert decode(encode(manifest)) == manifest
    assert manifest.task_names == tuple(sorted(tasks))


def with_metric(**fields):
    content = msgspec.json.decode(CONTENT)
    content["tasks"][0] |= fields
    return msgspec.json.encode(content)


def test_manifest_names_a_metric_or_none():
    assert b"metric" not in CONTENT
    assert b"ignored" not in CONTENT
    manifest = decode(with_metric(metric="miou", ignored=0))
    assert [(task.metric, task.ignored) for task in manifest.tasks] == [("miou", 0), (None, None)]
    assert decode(encode(manifest)) == manifest
    assert manifest.group(("depth",), manifest.weights).tasks == manifest.tasks[:1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metric": "psnr"}, "psnr"),
        ({"metric": "rmse"}, "the metric of depth: rmse is of values"),
        ({"metric": "miou", "ignored": 2**31}, "2147483647"),
        ({"metric": "miou", "prediction": {"shape": [1, 4], "dtype": "float32"}}, "wants predictions"),
    ],
)
def test_manifest_with_a_metric_that_cannot_be_is_refused(fields, words):
    with pytest.raises(BundleInvalid, match=words):
        decode(with_metric(**fields))


MEAN_AND_SPREAD = {name: {"shape": [1, 4, 4], "dtype": "float32"} for name in ("mean", "spread")}


def test_manifest_of_several_predictions_names_them_and_the_measured_one():
    (task, _) = decode(with_metric(prediction=None, predictions=MEAN_AND_SPREAD)).tasks
    assert list(task.outputs) == ["prediction.mean", "prediction.spread"]
    scores = {"boxes": MEAN_AND_SPREAD["mean"], "scores": {"shape": [3, 4, 4], "dtype": "float32"}}
    manifest = decode(with_metric(prediction=None, predictions=scores, metric="miou", measured="scores"))
    assert manifest.tasks[0].measured_output == "prediction.scores"
    assert decode(encode(manifest)) == manifest
    assert TWO.tasks[0].outputs == {"prediction": TWO.tasks[0].prediction}
    assert TWO.tasks[0].measured_output == "prediction"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prediction": None}, "depth needs one prediction, or several by name"),
        ({"predictions": MEAN_AND_SPREAD}, "depth needs one prediction, or several by name"),
        ({"prediction": None, "predictions": {"a b": MEAN_AND_SPREAD["mean"]}}, "matching regex"),
        ({"prediction": None, "predictions": dict.fromkeys(map(str, range(17)), MEAN_AND_SPREAD["mean"])}, "length"),
        ({"prediction": None, "predictions": MEAN_AND_SPREAD, "metric": "miou"}, "is of no prediction that it has"),
        ({"metric": "miou", "measured": "mean"}, "is of no prediction that it has"),
    ],
)
def test_manifest_of_predictions_that_cannot_be_is_refused(fields, words):
    with pytest.raises(BundleInvalid, match=words):
        decode(with_metric(**fields))


def test_encode_gives_the_same_bytes_for_the_same_content():
    turned = manifest_of(
        "depth",
        "normals",
        graphs=dict(reversed(TWO.graphs.items())),
        versions=dict(reversed(TWO.versions.items())),
    )
    assert encode(turned) == CONTENT
    assert encode(decode(CONTENT)) == CONTENT


@given(st.data())
def test_decode_of_an_altered_manifest_is_a_manifest_or_bundle_invalid(data):
    content = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        end = data.draw(st.integers(start, min(len(content), start + 40)))
        content[start:end] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"null", b"-1", b"1e400", b'""', b"{}"])
        )
    try:
        manifest = decode(bytes(content))
    except BundleInvalid as exc:
        assert str(exc).isprintable()
    else:
        assert decode(encode(manifest)) == manifest


@given(st.binary(max_size=100))
@example(b"\xff")
@example(b'{"format": ' + b"[" * 100_000)
@example(b'{"format":"\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"}')
def test_decode_of_random_bytes_is_bundle_invalid(data):
    with pytest.raises(BundleInvalid):
        decode(data)


def test_decode_of_every_prefix_is_bundle_invalid():
    for end in range(len(CONTENT.rstrip()) - 1):
        with pytest.raises(BundleInvalid):
            decode(CONTENT[:end])


def test_decode_refuses_what_is_too_large():
    with pytest.raises(BundleInvalid, match="over the 8388608 allowed"):
        decode(b" " * (MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize(
    ("change", "advice"),
    [(-1, "the bundle is older, compile it again"), (1, "update this software"), (1000, "update this software")],
)
def test_decode_of_another_format_says_which_and_what_to_do(change, advice):
    other = CONTENT.replace(b'"format": %d' % FORMAT, b'"format": %d' % (FORMAT + change))
    with pytest.raises(BundleInvalid, match=f"has format {FORMAT + change}, this software reads {FORMAT}: .*{advice}"):
        decode(other)


def altered(**change):
    content = msgspec.json.decode(CONTENT)
    return msgspec.json.encode({**content, **change})


def staged(reads, writes, parameters=("w",)):
    return altered(stages=[{"reads": reads, "writes": writes, "parameters": parameters}])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (altered(tasks=[]), "not understood"),
        (altered(tasks=list(reversed(msgspec.to_builtins(TWO.tasks)))), "not in the order of their names"),
        (altered(tasks=msgspec.to_builtins(TWO.tasks[:1]) * 2), "one is there twice"),
        (altered(tasks=msgspec.to_builtins(TWO.tasks[:1])), "disagree about graph 'head.normals.evaluate'"),
        (altered(graphs={}), "disagree about graph 'encoder.0.backward'"),
        (altered(graphs={"../../evil": {}}), "not understood"),
        (altered(graphs={"encoder.0.forward\n": {}}), "not understood"),
        (altered(tensors=msgspec.to_builtins(TWO.tensors[:2])), "disagree about part 'head.normals'"),
        (altered(tensors=msgspec.to_builtins(TWO.tensors[1:])), "at offset 2 instead of 0"),
        (altered(opset=-1), "not understood"),
        (altered(values=[{"shape": [2], "dtype": "float32"}]), "no stage of the encoder writes 'v.0'"),
        (staged(["z.0"], ["z.0"]), "stage 0 of the encoder reads 'z.0', which no stage before it writes"),
        (staged(["x"], ["z.0", "z.0"]), "stage 0 of the encoder writes 'z.0', which is written already or unknown"),
        (staged(["x"], ["z.0", "v.0"]), "stage 0 of the encoder writes 'v.0', which is written already or unknown"),
        (staged(["x"], ["x"]), "stage 0 of the encoder writes 'x', which is written already or unknown"),
        (staged(["x"], ["z.0"], ["w", "w"]), "disagree about its parameters"),
        (staged(["x"], ["z.0"], []), "disagree about its parameters"),
        (staged(["x"], ["y"]), "not understood"),
        (staged([], ["z.0"]), "not understood"),
        (altered(parity={"max_relative_error": None, "worst": "", "compared": 1}), "not understood"),
        (altered(evil=1), "not understood"),
    ],
)
def test_decode_refuses_what_contradicts_itself(content, sentence):
    with pytest.raises(BundleInvalid, match=sentence):
        decode(content)


def test_encode_refuses_what_decode_would():
    with pytest.raises(BundleInvalid, match="not understood"):
        encode(manifest_of("depth", parity=Parity(max_relative_error=float("nan"), worst="", compared=1)))


def test_group_keeps_its_tasks_and_shares_the_graphs():
    weights = file_of(b"other")
    group = TWO.group(("normals", "normals"), weights)
    assert group.task_names == ("normals",)
    assert group.weights == weights
    assert group.table.parts.keys() == {"encoder", "head.normals"}
    assert group.graphs.items() <= TWO.graphs.items()
    assert decode(encode(group)) == group
    with pytest.raises(BundleInvalid, match="no task 'edges'; it has depth, normals"):
        TWO.group(("edges",), weights)


def stateful(*parts):
    shapes = {tensor.name: tensor.shape for tensor in TWO.tensors}
    return manifest_of(
        "depth", "normals", tensors=TensorTable.of(shapes | {f"state.{part}.m": (2,) for part in parts}).tensors
    )


def test_group_keeps_the_state_of_its_parts():
    whole = stateful("encoder", "head.depth", "head.normals")
    assert decode(encode(whole)) == whole
    group = whole.group(("normals",), whole.weights)
    assert list(group.table.parts) == ["encoder", "head.normals", "state.encoder", "state.head.normals"]
    assert decode(encode(group)) == group
    some = stateful("head.depth").group(("normals",), whole.weights)
    assert list(some.table.parts) == ["encoder", "head.normals"]


@pytest.mark.parametrize("part", ["head.edges", "other", "state"])
def test_decode_refuses_state_of_a_part_that_is_not_there(part):
    with pytest.raises(BundleInvalid, match=f"disagree about part 'state.{part}'"):
        encode(stateful(part))


def with_stem(*tasks, **change):
    shapes = {"encoder.w": (2,), "stem.w": (5,), **{f"head.{task}.w": (3,) for task in tasks}}
    fields = {
        "embedding": Array(shape=(8, 2), dtype="float32"),
        "stages": (Stage(reads=("e",), writes=("z.0",), parameters=("w",)),),
        "tensors": TensorTable.of(shapes).tensors,
        "graphs": {name: file_of(name.encode()) for name in graph_names(tasks, 1, stem=True)},
    }
    return manifest_of(*tasks, **{**fields, **change})


def test_manifest_with_a_stem_round_trips_and_its_groups_keep_it():
    manifest = with_stem("depth", "normals")
    assert decode(encode(manifest)) == manifest
    assert (list(manifest.sources), list(TWO.sources)) == (["e"], ["x"])
    group = manifest.group(("normals",), file_of(b"w"))
    assert decode(encode(group)).task_names == ("normals",)
    assert set(group.table.parts) == {"encoder", "head.normals", "stem"}
    assert {"stem.forward", "stem.backward", "stem.predict"} <= set(group.graphs)


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (with_stem("depth", embedding=None), "disagree about graph 'stem.backward'"),
        (with_stem("depth", graphs=manifest_of("depth").graphs), "disagree about graph 'stem.backward'"),
        (with_stem("depth", tensors=manifest_of("depth").tensors), "disagree about part 'stem'"),
        (with_stem("depth", stages=manifest_of("depth").stages), "reads 'x', which no stage before it writes"),
        (
            with_stem(
                "depth",
                tensors=TensorTable.of(
                    {"encoder.w": (2,), "head.depth.w": (3,), "state.encoder.mean": (2,), "stem.w": (5,)}
                ).tensors,
            ),
            "disagree about part 'state.encoder'",
        ),
    ],
)
def test_encode_refuses_a_stem_that_contradicts_the_rest(manifest, sentence):
    with pytest.raises(BundleInvalid, match=sentence):
        encode(manifest)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bundle"
    write_folder(folder, TWO, b"weights", {name: name.encode() for name in TWO.graphs})
    return folder


def test_folder_round_trips_and_can_be_written_again(folder):
    assert read_folder(folder) == TWO
    one = manifest_of("depth")
    write_folder(folder, one, b"weights", {name: name.encode() for name in one.graphs})
    assert read_folder(folder) == one


@pytest.mark.parametrize("with_forward", [True, False])
def test_folder_with_official_artifacts_has_each_of_them_checked(tmp_path, with_forward):
    names = {f"{kind}_model": f"{kind}_model.onnx" for kind in ("training", "eval", "optimizer")}
    names["checkpoint"] = "checkpoint"
    artifacts = Artifacts(**{field: file_of(name.encode()) for field, name in names.items()}, max_relative_error=0.0)
    forward = file_of(b"forward") if with_forward else None
    whole = manifest_of(
        "depth", "normals", ort_training=OrtTrainingArtifacts(groups={"depth": artifacts}, forward=forward)
    )
    paths = [artifact_path(tmp_path, "depth", name) for name in artifacts.files]
    assert sorted(path.name for path in paths) == sorted(names.values())
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    if with_forward:
        paths.append(tmp_path / ORT_TRAINING / FORWARD)
        paths[-1].write_bytes(b"forward")
    write_folder(tmp_path, whole, b"weights", {name: name.encode() for name in whole.graphs})
    assert read_folder(tmp_path) == whole
    for path in paths:
        kept = path.read_bytes()
        path.write_bytes(kept[::-1])
        with pytest.raises(BundleInvalid, match=f"{path.name} is not the file"):
            read_folder(tmp_path)
        path.write_bytes(kept)


@pytest.mark.parametrize("content", [b"other graph", b""])
def test_folder_with_an_altered_graph_is_refused(folder, content):
    path = graph_path(folder, "head.depth.step")
    path.write_bytes(content)
    with pytest.raises(BundleInvalid, match="head.depth.step.onnx is not the file"):
        read_folder(folder)
    path.unlink()
    with pytest.raises(BundleInvalid, match="head.depth.step.onnx is missing"):
        read_folder(folder)


def test_folder_with_weights_of_the_same_size_is_refused(folder):
    (folder / "weights.safetensors").write_bytes(b"WEIGHTS")
    with pytest.raises(BundleInvalid, match="weights.safetensors is not the file"):
        read_folder(folder)


def test_what_is_no_bundle_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "odd" / "manifest.json").mkdir(parents=True)
    for name in ("absent", "file", "odd"):
        with pytest.raises(BundleInvalid, match=f"{name} is not a bundle: it has no file manifest.json"):
            read_folder(tmp_path / name)


def test_folder_with_an_endless_manifest_is_read_up_to_the_cap(folder):
    with (folder / "manifest.json").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(BundleInvalid, match="over the 8388608 allowed"):
        read_folder(folder)


def test_check_file_refuses_a_folder_in_its_place(tmp_path):
    with pytest.raises(BundleInvalid, match="missing"):
        check_file(tmp_path, file_of(b"x"))


def fixed_of(**shapes):
    table = TensorTable.of({name.replace("__", "."): shape for name, shape in shapes.items()})
    data = pack(table, np.arange(table.size, dtype=np.float32))
    return FixedTensors(tensors=table.tensors, file=file_of(data)), data


ENCODER, ENCODER_FILE = fixed_of(encoder__w=(2,), state__encoder__mean=(1,))
HEAD, HEAD_FILE = fixed_of(head__depth__v=(4,))


def frozen_of(*tasks, **change):
    """All of the encoder is fixed, and one tensor of the first task's head."""
    fields = {
        "tensors": TensorTable.of({f"head.{task}.w": (3,) for task in tasks}).tensors,
        "stages": (Stage(reads=("x",), writes=("z.0",), parameters=()),),
        "graphs": {name: file_of(name.encode()) for name in graph_names(tasks, 1, fixed_stages=1)},
        "fixed": {"encoder": ENCODER, "head.depth": HEAD},
    }
    return manifest_of(*tasks, **(fields | change))


FROZEN = frozen_of("depth", "normals")


def test_fixed_tensors_are_files_that_every_group_has_of_its_parts():
    assert decode(encode(FROZEN)) == FROZEN
    assert b"fixed" not in CONTENT
    assert (TWO.fixed_stages, TWO.trains_shared) == (0, True)
    assert (FROZEN.fixed_stages, FROZEN.trains_shared) == (1, False)
    assert {name for name in FROZEN.graphs if name.startswith("encoder")} == {"encoder.predict", "encoder.0.forward"}
    assert FROZEN.files == FROZEN.graphs | {"fixed.encoder": ENCODER.file, "fixed.head.depth": HEAD.file}
    assert FROZEN.needs()[ENCODER.file.digest] == ENCODER.file.size_bytes
    depth, normals = (FROZEN.group((task,), FROZEN.weights) for task in ("depth", "normals"))
    assert set(depth.fixed) == {"encoder", "head.depth"}
    assert set(normals.fixed) == {"encoder"}
    assert [tensor.name for tensor in normals.tensors] == ["head.normals.w"]
    with pytest.raises(BundleInvalid, match="the encoder has nothing to train"):
        _ = FROZEN.encoder_table


def test_encoder_server_s_device_has_no_fixed_tensors_of_the_encoder():
    embedding = Array(shape=(4,), dtype="float32")
    tensors = TensorTable.of({"encoder.v": (2,), "head.depth.w": (3,)}).tensors
    stem, _ = fixed_of(stem__w=(1,))
    stages = (Stage(reads=("e",), writes=("z.0",), parameters=("v",)),)
    graphs = {name: file_of(b"1") for name in graph_names(("depth",), 1, stem=True, fixed_stem=True)}
    assert "stem.backward" not in graphs
    fixed = {"encoder": fixed_of(encoder__w=(2,))[0], "stem": stem}
    manifest = frozen_of("depth", embedding=embedding, tensors=tensors, stages=stages, graphs=graphs, fixed=fixed)
    assert decode(encode(manifest)) == manifest
    assert (manifest.fixed_stages, manifest.trains_shared) == (0, True)
    assert manifest.local().fixed == {"stem": stem}


def twice(fixed):
    return FixedTensors(tensors=fixed.tensors * 2, file=fixed.file)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fixed": {"encoder": ENCODER, "head.depth": ENCODER}}, "fixed tensors of head.depth have 'encoder.w'"),
        (
            {"fixed": {"encoder": ENCODER, "head.depth": fixed_of(head__depth__w=(3,))[0]}},
            "head.depth have 'head.depth.w', which is another part's, or trained",
        ),
        (
            {"fixed": {"encoder": ENCODER, "head.depth": twice(HEAD)}},
            "fixed tensors of head.depth: .* is there twice",
        ),
        ({"fixed": {"head.depth": HEAD}}, "disagree about graph 'encoder.0.backward'"),
        ({"fixed": {"encoder": ENCODER, "stem": HEAD}}, "disagree about part 'stem'"),
        (
            {
                "fixed": {"encoder": ENCODER, "head.normals": fixed_of(head__normals__w=(1,))[0]},
                "tensors": TensorTable.of({"head.depth.w": (3,)}).tensors,
            },
            "nothing is trained for task 'normals'",
        ),
        (
            {"graphs": {name: file_of(b"1") for name in graph_names(("depth", "normals"), 1)}},
            "graphs and tasks disagree about graph 'encoder.0.backward'",
        ),
    ],
)
def test_encode_refuses_fixed_tensors_that_contradict_the_rest(change, sentence):
    with pytest.raises(BundleInvalid, match=sentence):
        encode(frozen_of("depth", "normals", **change))


def test_folder_has_a_file_of_fixed_tensors_for_each_part_and_none_of_before(tmp_path):
    files = {name: name.encode() for name in FROZEN.graphs}
    files |= {"fixed.encoder": ENCODER_FILE, "fixed.head.depth": HEAD_FILE}
    write_folder(tmp_path, FROZEN, b"weights", files)
    assert read_folder(tmp_path) == FROZEN
    path = graph_path(tmp_path, "fixed.head.depth")
    assert path == tmp_path / "fixed" / "head.depth.safetensors"
    vector = read_fixed(path, HEAD)
    assert vector.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not vector.flags.writeable
    path.write_bytes(HEAD_FILE[:-1])
    with pytest.raises(BundleInvalid, match=r"head.depth.safetensors is not the file"):
        read_folder(tmp_path)
    for content in (HEAD_FILE[:-1], b""):
        path.write_bytes(content)
        with pytest.raises(BundleInvalid, match=r"head.depth.safetensors cannot be read"):
            read_fixed(path, HEAD)
    write_folder(tmp_path, TWO, b"weights", {name: name.encode() for name in TWO.graphs})
    assert not list((tmp_path / "fixed").iterdir())


def test_inputs_besides_the_image_have_names_in_graphs():
    tokens = Input(shape=(7,), dtype="int64", count=100)
    stage = Stage(reads=("x", "x.tokens"), writes=("z.0",), parameters=("w",))
    manifest = manifest_of("depth", other_inputs={"tokens": tokens}, stages=(stage,))
    assert decode(encode(manifest)) == manifest
    assert manifest.inputs == {"image": Input(shape=(3, 4, 4), dtype="float32"), "tokens": tokens}
    assert manifest.sources == {"x": manifest.inputs["image"], "x.tokens": tokens}
    assert [value_of(name) for name in manifest.inputs] == ["x", "x.tokens"]
    assert [input_of(value) for value in manifest.sources] == ["image", "tokens"]
    assert [is_input(name) for name in ("x", "x.tokens", "e", "z.0")] == [True, True, False, False]


def test_manifest_of_signals_alone_has_no_image():
    signal = Input(shape=(6, 128), dtype="float32")
    stage = Stage(reads=("x.signal",), writes=("z.0",), parameters=("w",))
    manifest = manifest_of("depth", input=None, other_inputs={"signal": signal}, stages=(stage,))
    assert decode(encode(manifest)).inputs == {"signal": signal}
    with pytest.raises(BundleInvalid, match="reads 'x.signal', which no stage before it writes"):
        encode(manifest_of("depth", stages=(stage,)))


@pytest.mark.parametrize("change", [{"input": None}, {"other_inputs": {"image": Input(shape=(3,), dtype="float32")}}])
def test_manifest_without_an_input_or_with_two_images_is_invalid(change):
    with pytest.raises(BundleInvalid, match="has no input, or names one 'image' twice"):
        encode(manifest_of("depth", **change))
