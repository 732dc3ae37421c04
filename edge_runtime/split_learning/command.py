"""The commands `split-train` and `encoder-server`: split learning on one machine, as two processes.

Exit codes are those of `train`: 0 done, 2 an option is wrong, 3 the bundle, the data or the encoder server cannot be
used.
"""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from devices.cli.run import BAD_INPUT, DONE, UsageError
from devices.cli.run import run as run_command
from devices.cli.settings import COMMAND_LINE, add_flags, build, of_flags, settings_of
from edge_runtime.datasets.dataset import Dataset
from edge_runtime.datasets.fit import check_fits
from edge_runtime.split_learning.client import EncoderServerUnavailable, RemoteEncoder, check_settings
from edge_runtime.split_learning.pipe_channel import PipeChannel
from edge_runtime.split_learning.pipe_server import PipeServer, read_weights, serve
from edge_runtime.training.command import (
    FAULTS,
    LocalTraining,
    measured,
    metrics_text,
    mib_text,
    print_epoch,
    timed_training,
)
from edge_runtime.training.engine import Engine, engine_version
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.kept_weights import KeptWeights
from edge_runtime.training.model import Model
from edge_runtime.training.optimizer import make_optimizer
from edge_runtime.training.process_memory import peak_rss_bytes
from edge_runtime.training.trainer import Trainer
from edge_runtime.wire import bundle_folder
from edge_runtime.wire import manifest as wire
from edge_runtime.wire.encoder_pipe import EncoderRound, EncoderServerProcess, PipeClosed, result_file
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.messages import Precision, Training
from edge_runtime.wire.split_learning import MessageLayout
from edge_runtime.wire.tensors import TensorTable, Vector

_FAULTS = {**FAULTS, EncoderServerUnavailable: BAD_INPUT, PipeClosed: BAD_INPUT}
NAME = "device"
PATIENCE_S = 600.0
"""The longest wait for a reply. A pipe loses nothing, so no request is sent again."""


class SplitEpoch(msgspec.Struct, frozen=True, kw_only=True):
    """The losses and metrics of one epoch, by task."""

    epoch: int
    train_loss: dict[str, float]
    val_loss: dict[str, float] | None
    val_metrics: dict[str, float] | None


class SplitResult(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON result of `split-train`. `bytes_per_step` is the traffic in both directions together."""

    tasks: tuple[str, ...]
    engine: str
    precision: Precision
    epochs: list[SplitEpoch]
    step_ms_median: float
    bytes_per_step: float
    peak_rss_bytes: int | None
    encoder_server_peak_rss_bytes: int | None


class LocalSplitTraining(LocalTraining, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of `split-train`."""

    micro_batch: Annotated[int, Meta(ge=0, le=65536, description="samples sent at once; 0 for the batch")] = 0
    ahead: Annotated[int, Meta(ge=1, le=64, description="micro-batches on their way at once")] = 2
    precision: Annotated[Precision, Meta(description="how activations and their gradients are sent")] = "fp32"
    noise: Annotated[
        float, Meta(ge=0, le=100, description="of embeddings, in root mean squares of them: standard deviation")
    ] = 0.0


SETTINGS = settings_of(LocalSplitTraining)


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `encoder-server`."""
    parser.add_argument("bundle", type=Path, help="folder of a bundle with a stem")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: one for each core)")
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="what computes (default cpu)")


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `split-train`."""
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a bundle with a stem")
    parser.add_argument("--data", type=Path, required=True, help="data set folder, as for train")
    parser.add_argument(
        "--out", type=Path, help="write the weights of the whole model here (.safetensors), after each epoch"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    add_flags(parser, SETTINGS)


def serve_encoder(args: argparse.Namespace) -> int:
    """Run the encoder server of a bundle on standard input and output; return the exit code."""
    return run_command(partial(_serve_encoder, args), _FAULTS)


def _serve_encoder(args: argparse.Namespace) -> int:
    manifest = _read_bundle_with_stem(args.bundle)
    engine = Engine(args.threads, provider=args.provider)
    graphs = GraphCache(engine).of(manifest, lambda name, _: bundle_folder.graph_path(args.bundle, name))
    server = PipeServer(manifest, graphs)
    try:
        # Unbuffered: `select` does not see what a buffer has already read.
        with (
            open(0, "rb", buffering=0, closefd=False) as incoming,
            open(1, "wb", buffering=0, closefd=False) as outgoing,
        ):
            serve(server, incoming, outgoing)
    except (PipeClosed, BrokenPipeError) as exc:
        raise PipeClosed(f"the encoder server ends: {exc}") from exc
    return DONE


def train(args: argparse.Namespace) -> int:
    """Train stem and heads here and the encoder in another process; return the exit code."""
    return run_command(partial(_train, args), _FAULTS)


def _train(args: argparse.Namespace) -> int:
    chosen = build(LocalSplitTraining, [(COMMAND_LINE, of_flags(args, SETTINGS))]).value
    settings = [chosen.of_epoch(epoch) for epoch in range(chosen.epochs)]
    check_settings(settings[0])
    manifest = _read_bundle_with_stem(args.bundle)
    if manifest.whole_batch and chosen.micro_batch:
        raise UsageError("--micro-batch: a loss of the bundle compares the samples of a batch: leave it out")
    dataset = Dataset.open(args.data)
    for split in (dataset.train, dataset.val):
        if split is not None:
            check_fits(manifest, split)
    kept = KeptWeights(args.out)
    kept.check(manifest.table, read_weights(args.bundle / bundle_folder.WEIGHTS, manifest.table))
    server = EncoderServerProcess.of_bundle(args.bundle, chosen.threads or None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = _epochs(args, chosen, settings, manifest, dataset, server, Path(folder), kept)
    finally:
        server.close()
    if args.json:
        print(msgspec.json.encode(result).decode())
    else:
        print(
            f"step {result.step_ms_median:.1f} ms (median), {result.bytes_per_step / 1e6:.2f} MB; peak memory "
            f"{mib_text(result.peak_rss_bytes)} here, "
            f"{mib_text(result.encoder_server_peak_rss_bytes)} in the encoder server"
        )
    return DONE


def _epochs(
    args: argparse.Namespace,
    chosen: LocalSplitTraining,
    settings: list[Training],
    manifest: wire.Manifest,
    dataset: Dataset,
    server: EncoderServerProcess,
    folder: Path,
    kept: KeptWeights,
) -> SplitResult:
    local = manifest.local()
    graphs = GraphCache(Engine(chosen.threads or None)).of(
        local, lambda name, _: bundle_folder.graph_path(args.bundle, name)
    )
    weights = read_weights(args.bundle / bundle_folder.WEIGHTS, local.table)
    state = np.zeros(make_optimizer(settings[0]).table(local.table.parameters).size, np.float32)
    channel = PipeChannel(server, NAME)
    epochs: list[SplitEpoch] = []
    step_ms: list[float] = []
    traffic_bytes = 0
    for epoch, one in enumerate(settings):
        previous = folder / str(epoch - 1) if epoch else None
        encoder_round = EncoderRound(
            round=epoch,
            samples=chosen.batch,
            training=one,
            weights=str(args.bundle / bundle_folder.WEIGHTS if previous is None else result_file(previous, NAME)),
            results=str(folder / str(epoch)),
            previous=None if previous is None else str(previous),
            precision=chosen.precision,
            idle_s=PATIENCE_S,
        )
        channel.open(encoder_round, MessageLayout.of(manifest, chosen.batch).max_message_bytes)
        encoder = RemoteEncoder(
            manifest,
            channel,
            epoch,
            chosen.batch,
            precision=chosen.precision,
            resend_s=PATIENCE_S,
            deadline_s=PATIENCE_S,
            in_flight=chosen.ahead,
            noise=chosen.noise,
            noise_key=str(chosen.seed).encode(),
        )
        encoder.begin_round()
        model = Model(local, graphs, weights, encoder=encoder)
        bytes_before = channel.bytes_up + channel.bytes_down
        trained, times_ms = timed_training(Trainer(model, dataset.train, chosen.micro_batch or None), one, state)
        traffic_bytes += channel.bytes_up + channel.bytes_down - bytes_before
        step_ms += times_ms
        val_loss, val_metrics = measured(model, dataset.val, chosen.batch)
        encoder.finish_round()
        weights = model.weights
        if args.out is not None:
            encoder_table = manifest.encoder_table
            trained_there = read_weights(result_file(folder / str(epoch), NAME), encoder_table)
            kept.keep(
                manifest.table, _joined(manifest.table, (local.table, weights), (encoder_table, trained_there)), epoch
            )
        epochs.append(SplitEpoch(epoch=epoch, train_loss=trained.loss, val_loss=val_loss, val_metrics=val_metrics))
        if not args.json:
            print_epoch(epoch, trained.loss, val_loss, metrics_text(manifest, val_metrics))
    return SplitResult(
        tasks=local.task_names,
        engine=engine_version(),
        precision=chosen.precision,
        epochs=epochs,
        step_ms_median=statistics.median(step_ms),
        bytes_per_step=traffic_bytes / len(step_ms),
        peak_rss_bytes=peak_rss_bytes(),
        encoder_server_peak_rss_bytes=channel.peak_rss_bytes(),
    )


def _joined(whole: TensorTable, *parts: tuple[TensorTable, Vector]) -> Vector:
    """Return the vector of a table whose tensors are spread over those of other tables."""
    result = np.empty(whole.size, np.float32)
    views = whole.views(result)
    for table, vector in parts:
        for name, view in table.views(vector).items():
            views[name][...] = view
    return result


def _read_bundle_with_stem(folder: Path) -> wire.Manifest:
    manifest = bundle_folder.read_folder(folder)
    if manifest.embedding is None:
        raise BundleInvalid(
            f"{folder} has no stem, and split learning needs one: give the model a stem and compile it again"
        )
    return manifest
