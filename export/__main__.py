"""The exporter's commands: `python -m export compile|deploy`.

Exit codes: 0 done, 2 wrong command line, 3 the model or the bundle cannot be used, 4 the graphs disagree with PyTorch.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TextColumn

from edge_runtime.engine import Engine
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.errors import WireError
from edge_runtime.wire.files import write_whole
from edge_runtime.wire.tensors import TensorTable, pack, transfer, unpack
from export.compile import Progress as Report
from export.compile import compile_model, describe
from export.deploy import inference_model
from export.errors import ExportError, ParityFailed
from export.parity import check_parity
from export.source import build_model

DONE, BAD_INPUT, NO_PARITY = 0, 3, 4
DEFAULT_MODEL = f"{Path(__file__).parent / 'models' / 'xception.py'}:build"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compiles = commands.add_parser("compile", help="a PyTorch model into a bundle of training graphs")
    compiles.add_argument(
        "source", nargs="?", default=DEFAULT_MODEL, metavar="FILE.py:build", help="default: the small Xception of MAS"
    )
    compiles.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="folder to write")
    compiles.add_argument("--name", default="", help="the bundle's name (default: the folder's)")
    compiles.add_argument("--seed", type=int, default=0, help="of the initial weights (default 0)")
    compiles.add_argument("--json", action="store_true", help="print a summary as JSON, and nothing else")
    deploys = commands.add_parser("deploy", help="a plain inference model of some tasks, with weights inside")
    deploys.add_argument("bundle", type=Path, metavar="BUNDLE")
    deploys.add_argument("--weights", type=Path, help="trained weights (.safetensors; default: the bundle's own)")
    deploys.add_argument("--tasks", help="tasks, with commas (default: all of the bundle)")
    deploys.add_argument("--out", type=Path, required=True, metavar="MODEL.onnx")
    args = parser.parse_args(arguments)
    try:
        return _compile(args) if args.command == "compile" else _deploy(args)
    except ParityFailed as exc:
        print(exc, file=sys.stderr)
        return NO_PARITY
    except (ExportError, WireError) as exc:
        print(exc, file=sys.stderr)
        return BAD_INPUT
    except OSError as exc:
        print(f"{exc.filename}: {exc.strerror}", file=sys.stderr)
        return BAD_INPUT


def _compile(args: argparse.Namespace) -> int:
    model = build_model(args.source, args.seed)
    with _progress(quiet=args.json) as report:
        compiled = compile_model(model, report)
    with tempfile.TemporaryDirectory() as folder:
        parity = check_parity(compiled, _Runner(Engine(), Path(folder)))
    manifest = describe(compiled, args.name or args.out.name, parity)
    wire.write_folder(args.out, manifest, pack(compiled.table, compiled.weights), compiled.graphs)
    if args.json:
        print(msgspec.json.encode(_summary(manifest)).decode())
    else:
        print(
            f"{args.out}: {', '.join(manifest.task_names)}; {manifest.table.parameters.size:,} parameters; "
            f"{len(manifest.graphs)} graphs; {parity.compared} tensors within {parity.max_relative_error:.1e} "
            "of PyTorch"
        )
    return DONE


def _deploy(args: argparse.Namespace) -> int:
    whole = wire.read_folder(args.bundle)
    names = tuple(sorted(args.tasks.split(","))) if args.tasks else whole.task_names
    manifest = whole.group(names, whole.weights)
    if args.weights is None:
        own = unpack(whole.table, (args.bundle / wire.WEIGHTS).read_bytes())
        weights = transfer(TensorTable(whole.tensors), own, manifest.table)
    else:
        weights = unpack(manifest.table, args.weights.read_bytes())
    model = inference_model(args.bundle, manifest, weights)
    write_whole(args.out, model.SerializeToString(deterministic=True))
    print(f"{args.out}: {', '.join(manifest.task_names)}")
    return DONE


class _Runner:
    """Runs graphs on the engine that devices use, one file at a time."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._path = folder / "graph.onnx"

    def __call__(self, graph: bytes, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        self._path.write_bytes(graph)
        return self._engine.load(self._path).call(inputs)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Report]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda *_: None
        return
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[graph]}"), console=console) as bar:
        task = bar.add_task("compile", graph="")
        yield lambda graph, done, total: bar.update(task, completed=done, total=total, graph=graph)


def _summary(manifest: wire.Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "tasks": manifest.task_names,
        "parameters": manifest.table.parameters.size,
        "state": manifest.table.size - manifest.table.parameters.size,
        "input": manifest.input.shape,
        "representation": tuple(array.shape for array in manifest.representation),
        "graphs": len(manifest.graphs),
        "graph_bytes": sum(file.size_bytes for file in manifest.graphs.values()),
        "weights_bytes": manifest.weights.size_bytes,
        "opset": manifest.opset,
        "parity": manifest.parity,
        "versions": manifest.versions,
    }


if __name__ == "__main__":
    sys.exit(main())
