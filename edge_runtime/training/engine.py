"""Training graphs on onnxruntime: the only module that imports it.

Rules that keep memory and time low, measured on two cores:
- all sessions share one thread pool (idle pools of their own cost 40 % of the time) and one allocator;
- the memory pattern is off, and so is the planned reuse of buffers: it holds a buffer from its first use to its last,
  idle in between or not (10 % more for the backward passes of ResNet-18 and MobileNetV2 at 224 pixels);
- inputs and outputs are bound to the caller's arrays, so parameters and gradients are never copied;
- large arrays are given back to the system when they are freed (edge_runtime.training.process_memory).
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort
from onnxruntime.capi import _pybind_state

from edge_runtime.training.process_memory import return_large_blocks

Arrays = Mapping[str, NDArray[Any]]
Held = Mapping[str, Any]
"""Values in the engine's memory by name."""
HAS_SHARED_POOL = hasattr(ort, "set_global_thread_pool_sizes")
ARENA_BYTES = 64 * 1024**2
"""The arena's first size unless a memory plan sets it (edge_runtime.wire.budget). When full, the arena grows by another
region, and no allocation reaches across regions: with onnxruntime's default of 1 MiB, MobileNetV2 peaked 18 % higher
than in one region. Unused memory costs nothing but a table of a 32nd part of its size."""
MAX_ARENA_BYTES = 1024**3
SPARE_BYTES = 64 * 1024
"""The rest of a chunk is free for other allocations from this size on. onnxruntime's default frees a rest only if it is
as large as the allocation, and memory peaks up to 15 % higher."""


class EngineError(RuntimeError):
    """A graph could not be loaded or run; the message names it and the reason."""


def engine_version() -> str:
    """Return name and version of the engine, for reports."""
    return f"onnxruntime {ort.__version__}"


def is_training_build() -> bool:
    """Return True if this onnxruntime is a build for training, with the kernels of training models."""
    return hasattr(_pybind_state, "Module")


class Engine:
    """Loads graphs; all of them share its threads and its memory.

    The thread pool and the arena belong to the process: the first engine of a process sets the number of threads
    and the first size of the arena. Where onnxruntime does not offer a shared pool (1.19), each session has a pool
    of its own, whose threads do not spin.
    """

    _started = False

    def __init__(
        self, threads: int | None = None, arena_bytes: int = ARENA_BYTES, provider: Literal["cpu", "cuda"] = "cpu"
    ) -> None:
        """Start the engine. `arena_bytes` is the arena's first size, resident as far as it is used; see ARENA_BYTES.

        Raises EngineError for a `provider` that this onnxruntime does not have.
        """
        self._providers = ["CPUExecutionProvider"]
        if provider == "cuda":
            self._providers.insert(0, "CUDAExecutionProvider")
        if lacking := sorted(set(self._providers) - set(ort.get_available_providers())):
            raise EngineError(f"{engine_version()} has no {lacking[0]}: install a build of onnxruntime that has it")
        self._threads = threads or len(os.sched_getaffinity(0))
        if not Engine._started:
            ort.set_default_logger_severity(3)
            # Two calls that may be made once in a process, before the first session.
            if HAS_SHARED_POOL:
                ort.set_global_thread_pool_sizes(self._threads, 1)
            info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            arena = {
                "initial_chunk_size_bytes": min(arena_bytes, MAX_ARENA_BYTES),
                "arena_extend_strategy": 0,  # by powers of two: regions of odd sizes fragment, and peaked 4 % higher
                "max_dead_bytes_per_chunk": SPARE_BYTES,
            }
            ort.create_and_register_allocator(info, ort.OrtArenaCfg(arena))
            return_large_blocks()
            Engine._started = True

    def load(self, path: Path) -> "Graph":
        """Load a graph, ready to run. Raises EngineError."""
        return self._load(path, ort.SessionOptions())

    def observe(self, path: Path, runs: Sequence[tuple[Arrays, Arrays]]) -> "GraphObservation":
        """Run a graph with these inputs and outputs; return the optimised graph and the memory that its nodes allocate.

        Outputs without an array stay in the engine, as in `Graph.run` with `hold`. Raises EngineError, also where this
        onnxruntime does not report allocations.
        """
        with tempfile.TemporaryDirectory() as name:
            optimised = Path(name) / "optimised.onnx"
            options = ort.SessionOptions()
            options.optimized_model_filepath = str(optimised)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(name) / "profile")
            graph = self._load(path, options)
            for inputs, outputs in runs:
                graph.run(inputs, outputs, hold=True)
            try:
                records = msgspec.json.decode(Path(graph.end_profiling()).read_bytes(), type=list[_Record])
                nodes = [NodeExecution.of(record.args) for record in records if record.name.endswith("_kernel_time")]
            except (msgspec.MsgspecError, ValueError) as exc:
                raise EngineError(
                    f"{engine_version()} does not report the memory that the nodes of a graph allocate"
                ) from exc
            count = len(nodes) // len(runs)
            each = tuple(tuple(nodes[i * count : (i + 1) * count]) for i in range(len(runs)))
            return GraphObservation(optimised=optimised.read_bytes(), runs=each)

    def _load(self, path: Path, options: Any) -> "Graph":
        if HAS_SHARED_POOL:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False
        options.enable_mem_reuse = False
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.use_env_allocators", "1")
        try:
            session = ort.InferenceSession(str(path), options, providers=self._providers)
        except Exception as exc:  # onnxruntime raises classes of its own that share no public base
            raise EngineError(f"{path.name} cannot be loaded: {_first_line(exc)}") from exc
        return Graph(path.name, session)


@dataclass(frozen=True, kw_only=True)
class NodeExecution:
    """One run of a node: its operator, types and shapes of inputs and outputs, memory left allocated."""

    operator: str
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    allocated_bytes: int

    @classmethod
    def of(cls, facts: bytes) -> "NodeExecution":
        """Read what a profile of onnxruntime says of a node. Raises MsgspecError or ValueError for another form."""
        found = msgspec.json.decode(facts, type=_Facts)
        return cls(
            operator=found.op_name,
            inputs=_shapes(found.input_type_shape),
            outputs=_shapes(found.output_type_shape),
            allocated_bytes=int(found.mem_requested_in_use_delta),
        )


Shapes = list[dict[str, tuple[int, ...]]]


class _Record(msgspec.Struct, frozen=True):
    """A record of onnxruntime's profile."""

    name: str
    args: msgspec.Raw = msgspec.Raw()


class _Facts(msgspec.Struct, frozen=True):
    """What it says of a node."""

    op_name: str
    input_type_shape: Shapes
    output_type_shape: Shapes
    mem_requested_in_use_delta: str | int


def _shapes(found: Shapes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(item for one in found for item in one.items())


@dataclass(frozen=True, kw_only=True)
class GraphObservation:
    """A graph as the engine runs it (ONNX, its nodes in the order in which they run), and each run, node by node."""

    optimised: bytes
    runs: tuple[tuple[NodeExecution, ...], ...]


class Graph:
    """One loaded graph."""

    def __init__(self, name: str, session: Any) -> None:
        self.name = name
        self._session = session
        self._inputs = {i.name for i in session.get_inputs()}
        self._outputs = {o.name for o in session.get_outputs()}

    @property
    def inputs(self) -> frozenset[str]:
        """The names of its inputs."""
        return frozenset(self._inputs)

    def _check(self, kind: str, names: set[str], arrays: Mapping[str, Any]) -> None:
        if missing := sorted(names - arrays.keys()):
            raise EngineError(
                f"{self.name} has an {kind} {missing[0]!r} that is not known here: the graph is of another version"
            )

    def run(self, inputs: Mapping[str, Any], outputs: Arrays, *, hold: bool = False) -> Held:
        """Run once. Every output of the graph is written into the array of its name in `outputs`.

        `inputs` may hold more names than the graph has. Arrays are C-contiguous and of the right type and shape. With
        `hold`, outputs without an array stay in the engine's memory and are returned, to be inputs of another graph.
        Raises EngineError.
        """
        self._check("input", self._inputs, inputs)
        if not hold:
            self._check("output", self._outputs, outputs)
        binding = self._session.io_binding()
        for name in self._inputs:
            value = inputs[name]
            if isinstance(value, np.ndarray):
                binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
            else:
                binding.bind_ortvalue_input(name, value)
        held = [name for name in self._outputs if name not in outputs]
        for name in held:  # first: the engine returns outputs in the order in which they were bound
            binding.bind_output(name, "cpu")
        for name in self._outputs.intersection(outputs):
            array = outputs[name]
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as exc:  # as above
            raise EngineError(f"{self.name} failed: {_first_line(exc)}") from exc
        return dict(zip(held, binding.get_outputs(), strict=False)) if held else {}

    def call(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run once and return fresh arrays by output name. Raises EngineError."""
        self._check("input", self._inputs, inputs)
        names = sorted(self._outputs)
        try:
            found = self._session.run(names, {name: inputs[name] for name in self._inputs})
        except Exception as exc:  # as above
            raise EngineError(f"{self.name} failed: {_first_line(exc)}") from exc
        return dict(zip(names, (np.asarray(array) for array in found), strict=True))

    def end_profiling(self) -> str:
        """End profiling; return the path of the profile of a graph that was loaded for it."""
        return str(self._session.end_profiling())


def _first_line(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
