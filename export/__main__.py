"""The exporter's commands: `python -m export compile|split|deploy|footprint`.

Exit codes: 0 done, 2 wrong command line, 3 the model or the bundle cannot be used, 4 the graphs disagree with PyTorch.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from devices.cli.program import add_completion, called
from devices.cli.run import BAD_INPUT, DONE, NO_PARITY
from devices.cli.run import run as run_command
from devices.cli.values import names, whole_number
from edge_runtime.training.engine import SPARE_BYTES, Arrays, Engine, EngineError, Graph, GraphObservation
from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.bundle_cost import check_costs
from edge_runtime.wire.errors import TensorsInvalid, WireError
from edge_runtime.wire.files import check_writable, write_atomic
from edge_runtime.wire.footprint import MICRO_BATCHES
from edge_runtime.wire.graph_cost import graph_cost
from edge_runtime.wire.messages import SplitLearning
from edge_runtime.wire.operators import check_graph
from edge_runtime.wire.reconstruction import fault as reconstruction_fault
from edge_runtime.wire.tensors import TensorTable, Vector, pack, replaced, transfer, unpack, unpack_known
from export import provenance
from export.compile import Compiled, compile_model, describe
from export.compile import Progress as Report
from export.deploy import inference_model
from export.errors import ExportError, OperatorUnsupported, OrtTrainingImpossible, ParityFailed
from export.loading import check_loading
from export.memory import command as footprint_command
from export.memory.footprint import footprint
from export.model import MultiTaskModel
from export.model_file import build_model
from export.module_state import is_in_evaluation
from export.object_digest import Indescribable
from export.ort_training.groups import (
    artifacts_of_all_tasks,
    ort_training_python,
    split,
    with_artifacts,
    write_artifacts,
)
from export.ort_training.training_model import forward_graph
from export.parity.check import check_parity
from export.reconstruction import measure_reconstruction

_FAULTS: dict[type[Exception], int] = {
    ParityFailed: NO_PARITY,
    ExportError: BAD_INPUT,
    WireError: BAD_INPUT,
    EngineError: BAD_INPUT,
    OSError: BAD_INPUT,
}
DEFAULT_MODEL = f"{Path(__file__).parent / 'models' / 'xception.py'}:build"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    parser = argparse.ArgumentParser(prog=called("export"), description=__doc__)
    add_completion(parser, "export")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compiles = commands.add_parser("compile", help="a PyTorch model into a bundle of training graphs")
    compiles.add_argument(
        "source", nargs="?", default=DEFAULT_MODEL, metavar="FILE.py:build", help="default: the small Xception of MAS"
    )
    compiles.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    compiles.add_argument("--name", default="", help="the bundle's name (default: the folder's)")
    compiles.add_argument("--seed", type=int, default=0, help="of the initial weights (default 0)")
    compiles.add_argument(
        "--stages",
        type=whole_number(1, wire.MAX_STAGES),
        metavar="N",
        help="cut the encoder into at most N stages (default: as many as keep the memory of training low)",
    )
    compiles.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else")
    compiles.add_argument(
        "--ort-training",
        choices=("auto", "require", "off"),
        default="off",
        help="also make ONNX Runtime training artifacts: auto goes on without where they are not possible (off)",
    )
    compiles.add_argument(
        "--anew",
        action="store_true",
        help="compile although nothing has changed since the bundle was made; always so with ONNX Runtime training "
        "artifacts",
    )
    splits = commands.add_parser("split", help="make ONNX Runtime training artifacts for groups of a bundle's tasks")
    splits.add_argument("bundle", type=Path, metavar="BUNDLE", help="compiled with --ort-training auto or require")
    splits.add_argument(
        "--groups", required=True, metavar='"a,b;c,d"', help="tasks with commas, groups with semicolons"
    )
    splits.add_argument("--weights", type=Path, help="weights of the whole model (default: the bundle's own)")
    splits.add_argument("--out", type=Path, metavar="FOLDER", help="leave the bundle as it is and write there")
    for command in (compiles, splits):
        command.add_argument(
            "--ort-training-python",
            type=Path,
            metavar="PYTHON",
            help="that has onnxruntime-training (default: MAS_ORT_TRAINING_PYTHON, or .venv-ort-training)",
        )
    deploys = commands.add_parser("deploy", help="a plain inference model of some tasks, with weights inside")
    deploys.add_argument("bundle", type=Path, metavar="BUNDLE")
    deploys.add_argument("--weights", type=Path, help="trained weights (.safetensors; default: the bundle's own)")
    deploys.add_argument(
        "--own",
        type=Path,
        help="weights that a device has of its own (own/…/ROUND.safetensors of its state), over them",
    )
    deploys.add_argument("--tasks", type=names, help="tasks, with commas (default: all of the bundle)")
    deploys.add_argument("--out", type=Path, required=True, metavar="MODEL.onnx")
    footprints = commands.add_parser("footprint", help="memory that training takes, and the plan for a budget")
    footprint_command.add_arguments(footprints)
    args = parser.parse_args(arguments)
    run = {"compile": _compile, "split": _split, "deploy": _deploy, "footprint": _footprint}
    return run_command(partial(run[args.command], args), _FAULTS)


def _compile(args: argparse.Namespace) -> int:
    model = build_model(args.source, args.seed)
    check_writable(args.out / bundle_folder.MANIFEST)
    sources = _sources(args, model)
    if sources is not None and not args.anew and (found := provenance.up_to_date(args.out, sources)):
        manifest, made = found
        _warn_of_reconstruction(manifest)
        if args.json:
            print(msgspec.json.encode(_summary(manifest) | {"compiled": False}).decode())
        else:
            since = f"{made:%Y-%m-%d %H:%M}"
            print(f"nothing changed since {since}: {args.out} is up to date (--anew compiles it all the same)")
        return DONE
    with _progress(quiet=args.json) as report, tempfile.TemporaryDirectory() as folder:
        compiled = compile_model(model, report, stages=args.stages)
        run = _Runner(Engine(), Path(folder))
        report("compared with PyTorch", 0, 1)
        check_loading(compiled.graphs, compiled.lowered, run.load)
        parity = check_parity(compiled, run)
        manifest = describe(compiled, args.name or args.out.name, parity)
        reconstruction = measure_reconstruction(model, partial(report, "inputs from embeddings"))
        manifest = msgspec.structs.replace(manifest, reconstruction=reconstruction)
        report("memory", 0, 1)
        try:
            taken = footprint(compiled.graphs, run.observe, SPARE_BYTES)
            manifest = msgspec.structs.replace(manifest, footprint=taken)
        except EngineError as exc:  # an onnxruntime before 1.28, the last for Python 3.10 among them
            print(f"the bundle has no memory plan: {exc}", file=sys.stderr)
        _check_costs(manifest, compiled)
        provenance.forget(args.out)
        manifest = _with_artifacts(args, compiled, manifest, run)
    bundle_folder.write_folder(args.out, manifest, pack(compiled.table, compiled.weights), compiled.files)
    if sources is not None:
        provenance.write(args.out, sources)
    if compiled.unreached:
        more = f" and {len(compiled.unreached) - 1} more" if len(compiled.unreached) > 1 else ""
        print(f"no gradient reaches parameter {compiled.unreached[0]}{more}: fixed", file=sys.stderr)
    for part, module in model.parts().items():
        if is_in_evaluation(module):
            print(
                f"{part} is trained in evaluation mode, as {args.source} returned it: without dropout, and "
                "normalisations keep their statistics",
                file=sys.stderr,
            )
    _warn_of_reconstruction(manifest)
    if args.json:
        print(msgspec.json.encode(_summary(manifest) | {"compiled": True}).decode())
    else:
        fixed = _fixed_elements(manifest)
        numbers = f"{manifest.table.parameters.size:,} parameters" + (f" and {fixed:,} fixed numbers" if fixed else "")
        print(
            f"{args.out}: {', '.join(map(_task, manifest.tasks))}; {numbers}; {len(manifest.graphs)} graphs; "
            f"{parity.compared} tensors within {parity.max_relative_error:.1e} of PyTorch"
        )
    return DONE


def _check_costs(manifest: wire.Manifest, compiled: Compiled) -> None:
    """Raise BundleInvalid where devices would, for what a graph takes."""
    graphs = {name: check_graph(data, name) for name, data in compiled.graphs.items()}
    for batch in (1, MICRO_BATCHES[-1]):
        check_costs(manifest, {name: graph_cost(graph, name, batch) for name, graph in graphs.items()}, batch)


def _sources(args: argparse.Namespace, model: MultiTaskModel) -> str | None:
    """Return the digest of all that decides the bundle; None where it cannot be known."""
    if args.ort_training != "off":  # artifacts come from another environment
        return None
    try:
        return provenance.digest_of_sources(
            Path(args.source.rpartition(":")[0]), model, (args.name or args.out.name, args.seed, args.stages)
        )
    except Indescribable as exc:
        print(f"{args.source} will be compiled each time: {exc} cannot be compared with what it was", file=sys.stderr)
        return None


def _warn_of_reconstruction(manifest: wire.Manifest) -> None:
    """Say what an attacker makes of the stem's embeddings, and what follows from that."""
    if manifest.embedding is None:
        return
    if (measured := manifest.reconstruction) is not None:
        noisy = "".join(f", noise {each.noise:g} {each.psnr_db:.1f}" for each in measured.noisy)
        print(
            f"inputs were made again from the stem's embeddings, PSNR in dB: fp32 {measured.fp32:.1f}, fp16 "
            f"{measured.fp16:.1f}, int8 {measured.int8:.1f}{noisy}",
            file=sys.stderr,
        )
    if found := reconstruction_fault(measured, SplitLearning()):
        print(f"split learning must be allowed by name (allow_reconstruction): {found}", file=sys.stderr)


def _fixed_elements(manifest: wire.Manifest) -> int:
    return sum(fixed.table.size for fixed in manifest.fixed.values())


def _task(task: wire.Task) -> str:
    return task.name if task.metric is None else f"{task.name} ({task.metric})"


def _with_artifacts(
    args: argparse.Namespace, compiled: Compiled, manifest: wire.Manifest, run: "_Runner"
) -> wire.Manifest:
    """Return the manifest with the artifacts that are wanted and possible, after writing their files."""
    shutil.rmtree(args.out / bundle_folder.ORT_TRAINING, ignore_errors=True)  # of a bundle that was here before
    if args.ort_training == "off":
        return manifest
    try:
        python = ort_training_python(args.ort_training_python)
        forward = forward_graph(compiled.model)
        made = artifacts_of_all_tasks(
            forward,
            manifest,
            compiled.weights,
            compiled.model,
            fixed=compiled.fixed_tensors,
            graphs=compiled.graphs,
            run=run,
            python=python,
        )
    except (OrtTrainingImpossible, OperatorUnsupported) as exc:
        if args.ort_training == "require":
            raise
        print(f"no ONNX Runtime training artifacts: {exc}", file=sys.stderr)
        return manifest
    data = forward.SerializeToString(deterministic=True)
    (args.out / bundle_folder.MANIFEST).unlink(missing_ok=True)  # a folder with a manifest is whole
    write_artifacts(args.out, data, made)
    return with_artifacts(manifest, data, made)


def _split(args: argparse.Namespace) -> int:
    check_writable((args.out or args.bundle) / bundle_folder.MANIFEST)
    weights = None
    if args.weights is not None:
        weights = unpack(bundle_folder.read_folder(args.bundle).table, args.weights.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        run = _Runner(Engine(), Path(folder))
        python = ort_training_python(args.ort_training_python)
        names = split(args.bundle, args.groups, weights, run=run, python=python, out=args.out)
    print(f"{args.out or args.bundle}: artifacts for {', '.join(names)}")
    return DONE


def _deploy(args: argparse.Namespace) -> int:
    whole = bundle_folder.read_folder(args.bundle)
    names = tuple(sorted(args.tasks)) if args.tasks else whole.task_names
    manifest = whole.group(names, whole.weights)
    if args.weights is None:
        first = unpack(whole.table, (args.bundle / bundle_folder.WEIGHTS).read_bytes())
        weights = transfer(whole.table, first, manifest.table)
    else:
        weights = _weights(args.weights, manifest.table, whole.table)
    if args.own is not None:
        own = unpack_known(manifest.table, args.own.read_bytes())
        if own is None:
            raise TensorsInvalid(f"{args.own} has no weights of {', '.join(manifest.task_names)}")
        weights = replaced(manifest.table, weights, *own)
    model = inference_model(args.bundle, manifest, weights)
    write_atomic(args.out, model.SerializeToString(deterministic=True))
    print(f"{args.out}: {', '.join(manifest.task_names)}")
    return DONE


def _weights(path: Path, table: TensorTable, whole: TensorTable) -> Vector:
    """Return the weights of some tasks from a file that has theirs alone, or those of the whole model.

    Raises TensorsInvalid for any other file.
    """
    data = path.read_bytes()
    try:
        return unpack(table, data)
    except TensorsInvalid as fault:
        with suppress(TensorsInvalid):
            return transfer(whole, unpack(whole, data), table)
        raise TensorsInvalid(
            f"{path}: {fault}; a file has the weights of the tasks that --tasks names, or those of the whole model"
        ) from fault


def _footprint(args: argparse.Namespace) -> int:
    footprint_command.run(args)
    return DONE


class _Runner:
    """Runs graphs on the engine that devices use; each is loaded once."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._path = folder / "graph.onnx"
        self._loaded: dict[bytes, Graph] = {}

    def __call__(self, graph: bytes, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        return self.load(graph).call(inputs)

    def load(self, graph: bytes) -> Graph:
        """Return a loaded graph. Raises EngineError."""
        if graph not in self._loaded:
            self._path.write_bytes(graph)
            self._loaded[graph] = self._engine.load(self._path)
        return self._loaded[graph]

    def observe(self, graph: bytes, runs: Sequence[tuple[Arrays, Arrays]]) -> GraphObservation:
        """Run a graph several times and return what its nodes allocate."""
        self._path.write_bytes(graph)
        return self._engine.observe(self._path, runs)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Report]:
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console  # the environment of onnxruntime-training, which runs `split`, has none
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[graph]}"), console=console) as bar:
        task = bar.add_task("compile", graph="")
        yield lambda graph, done, total: bar.update(task, completed=done, total=total, graph=graph)


def _summary(manifest: wire.Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "tasks": manifest.task_names,
        "parameters": manifest.table.parameters.size,
        "state": manifest.table.size - manifest.table.parameters.size,
        "fixed": _fixed_elements(manifest),
        "inputs": {name: array.shape for name, array in manifest.inputs.items()},
        "representation": tuple(array.shape for array in manifest.representation),
        "metrics": {task.name: task.metric for task in manifest.tasks},
        "graphs": len(manifest.graphs),
        "graph_bytes": sum(file.size_bytes for file in manifest.graphs.values()),
        "weights_bytes": manifest.weights.size_bytes,
        "opset": manifest.opset,
        "parity": manifest.parity,
        "reconstruction": manifest.reconstruction,
        "versions": manifest.versions,
        "ort_training": {} if manifest.ort_training is None else manifest.ort_training.groups,
    }


if __name__ == "__main__":
    sys.exit(main())
