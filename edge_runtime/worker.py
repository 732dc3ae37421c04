"""The device's worker: training and evaluation by the engine on this device's data set."""

import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edge_runtime import __version__
from edge_runtime.agent.work import (
    DownloadedPlan,
    EvaluationResult,
    NoData,
    Report,
    SplitLearningChannel,
    TrainResult,
    WorkerUnusable,
    WorkRefused,
)
from edge_runtime.datasets.dataset import Dataset, DatasetAbsent, DatasetInvalid, Split, state_of
from edge_runtime.datasets.fit import check_fits
from edge_runtime.linear.worker import LinearWorker
from edge_runtime.split_learning.client import (
    EncoderServerUnavailable,
    EncoderSessionLost,
    RemoteEncoder,
    check_settings,
)
from edge_runtime.training.available_memory import default_budget
from edge_runtime.training.checkpoint import key_of
from edge_runtime.training.encoder import EncoderBackend
from edge_runtime.training.engine import ARENA_BYTES, Engine, EngineError, engine_version, is_training_build
from edge_runtime.training.graph_cache import GraphCache
from edge_runtime.training.memory_plan import EVALUATION_BATCH, PlannedMemory, plan_memory
from edge_runtime.training.model import Model, TrainingStep
from edge_runtime.training.ort_training_engine import OrtTrainingCache, OrtTrainingUnavailable, check_installed
from edge_runtime.training.personal import pulled, runs
from edge_runtime.training.process_memory import installed_bytes, peak_rss_bytes, restart_peak, rss_bytes
from edge_runtime.training.round_trainer import RoundTrainer
from edge_runtime.training.service_memory import SPARE_BYTES
from edge_runtime.training.task_metrics import TaskMetrics
from edge_runtime.training.trainer import Trainer, evaluate
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.errors import AugmentationImpossible, BudgetTooSmall, BundleInvalid
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import DataSplit, Hello, OrtTrainingUse, Plan, Training, WorkStage, text
from edge_runtime.wire.split_learning import EVALUATION_SAMPLES, MessageLayout
from edge_runtime.wire.tensors import Vector, replaced, transfer

CHECKPOINT_S = 120.0
ATTEMPTS = 10
"""The most times that a round of split learning is begun after the encoder server lost its session."""
T = TypeVar("T")
_log = logging.getLogger(__name__)


class LocalWorker:
    """Trains and evaluates on the data set in a folder. Raises WorkerUnusable if it cannot be used."""

    def __init__(
        self,
        data: Path,
        state: Path,
        threads: int | None = None,
        *,
        ort_training: OrtTrainingUse = "off",
        checkpoint_s: float = CHECKPOINT_S,
        memory_budget_bytes: int | None = None,
        unheld_limit_bytes: int | None = None,
        graph_cache: GraphCache | None = None,
        noise_key: bytes = b"",
    ) -> None:
        """`graph_cache` and its engine are shared with other workers; without it the worker makes its own.

        `checkpoint_s` are the least seconds between two checkpoints of training; 0 makes one after every step.

        `noise_key` is the device's secret, from which noise on embeddings is drawn.

        `memory_budget_bytes` is the most memory that the process may take; None is the memory free now, less a reserve.
        Work that takes more than `unheld_limit_bytes`, which the kernel does not hold the process to, is refused.
        """
        self._data = data
        self._seen = state_of(data)
        try:
            self._dataset = Dataset.open(data)
            if ort_training == "require":
                check_installed()
        except DatasetAbsent as exc:
            raise NoData(f"no data in {data}: {exc}") from exc
        except (DatasetInvalid, OrtTrainingUnavailable) as exc:
            raise WorkerUnusable(str(exc)) from exc
        if ort_training == "auto" and not is_training_build():
            _log.info("%s is installed, not onnxruntime-training: this device trains portable graphs", engine_version())
        self._threads = threads
        self._use: OrtTrainingUse = ort_training if is_training_build() else "off"
        self._engine: Engine | None = None
        self._graph_cache = graph_cache
        self._ort_training_cache: OrtTrainingCache | None = None
        self._rounds = RoundTrainer(state, checkpoint_s)
        self._linear = LinearWorker(self._dataset, state)
        self._base_bytes = rss_bytes()
        self._noise_key = noise_key
        self._budget_bytes = memory_budget_bytes
        if memory_budget_bytes is None and self._base_bytes is not None:
            self._budget_bytes = default_budget(self._base_bytes)
        self._unheld_limit_bytes = unheld_limit_bytes
        if unheld_limit_bytes is not None:
            self._budget_bytes = min(self._budget_bytes or unheld_limit_bytes, unheld_limit_bytes - SPARE_BYTES)

    def hello(self) -> Hello:
        """Return the device's Hello: its software, memory and data, as the data set is now."""
        self._renew_dataset()
        splits: dict[DataSplit, Split | None] = {
            "train": self._dataset.train,
            "val": self._dataset.val,
            "test": self._dataset.test,
        }
        return Hello(
            software=f"mas-edge {__version__}",
            engine=text(engine_version()),
            platform=text(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
            examples={name: len(split) for name, split in splits.items() if split is not None},
            tasks=self._dataset.tasks,
            memory_bytes=installed_bytes(),
            ort_training=self._use,
        )

    def _renew_dataset(self) -> None:
        """Open the data set again if its files have changed; one that cannot be used now stays as it was."""
        seen = state_of(self._data)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._dataset = Dataset.open(self._data)
        except DatasetInvalid as exc:
            _log.warning("the data set has changed and cannot be used so, it stays as it was: %s", exc)
        else:
            _log.info("the data set has changed: %d samples to train on", len(self._dataset.train))

    def train(
        self, downloaded: DownloadedPlan, report: Report, channel: SplitLearningChannel | None = None
    ) -> TrainResult:
        """Train locally by `plan.training`. Raises WorkRefused."""
        if downloaded.manifest.linear is not None:
            return self._retry(downloaded.plan, lambda: self._linear.train(downloaded, self._watched(report)))
        return self._retry(downloaded.plan, lambda: self._train(downloaded, self._watched(report), channel))

    def _watched(self, report: Report) -> Report:
        """Return a report that ends work which takes more memory than the service may have."""
        limit_bytes = self._unheld_limit_bytes
        if limit_bytes is None:
            return report

        def watched(stage: WorkStage, done: int, total: int) -> None:
            if (taken_bytes := rss_bytes() or 0) > limit_bytes:
                mib = f"{taken_bytes >> 20} MiB, and the service may have {limit_bytes >> 20} MiB"
                raise WorkRefused("memory", f"the work took {mib}, which the kernel does not hold it to")
            report(stage, done, total)

        return watched

    def _retry(self, plan: Plan, work: Callable[[], T]) -> T:
        """Do the work, and again from its start where the encoder server lost its session. Raises WorkRefused."""
        for _ in range(ATTEMPTS):
            result = self._attempt(plan, work)
            if result is not None:
                return result
        raise WorkRefused("encoder_server", f"the encoder server lost the session of the round {ATTEMPTS} times")

    def _attempt(self, plan: Plan, work: Callable[[], T]) -> T | None:
        """Do the work; None where the encoder server lost its session. Raises WorkRefused."""
        try:
            return work()
        except EncoderSessionLost as exc:
            _log.warning("round %d begins again: %s", plan.round, exc)
            self._rounds.forget()
            return None
        except EncoderServerUnavailable as exc:
            raise WorkRefused("encoder_server", str(exc)) from exc
        except DatasetInvalid as exc:
            raise WorkRefused("no_data", str(exc)) from exc
        except AugmentationImpossible as exc:
            raise WorkRefused("bundle", str(exc)) from exc

    def _train(self, downloaded: DownloadedPlan, report: Report, channel: SplitLearningChannel | None) -> TrainResult:
        started_s = time.monotonic()
        restart_peak()
        plan, store, weights = downloaded.plan, downloaded.graphs, downloaded.weights
        assert plan.training is not None
        settings, split = plan.training, self._dataset.train
        asked, manifest = downloaded.manifest, self._labelled(downloaded.manifest, split)
        if self._dataset.val is not None:
            check_fits(manifest, self._dataset.val)
        try:
            step = self._training_step(manifest, store)
        except (EngineError, BundleInvalid, OrtTrainingUnavailable) as exc:
            raise WorkRefused("bundle", str(exc)) from exc
        received = weights if manifest is asked else transfer(asked.table, weights, manifest.table)
        own = self._rounds.restored(plan, manifest.table, received)
        memory = self._planned(manifest, settings, plan) if step is None else None
        model = self._model(manifest, store, own, split, step, memory, self._remote(plan, manifest, channel, memory))
        due = runs(
            plan.personal,
            settings,
            received=received,
            own=own,
            ranges=model.trained_in,
            parts=tuple(manifest.table.parts),
        )
        if plan.held is not None and downloaded.centre is not None:
            centre = downloaded.centre
            if manifest is not asked:
                centre = transfer(asked.table, centre, manifest.table)
            due = tuple(pulled(run, plan.held, centre, model.trained_in) for run in due)
        try:
            trained = self._rounds.train(
                due,
                plan,
                Trainer(model, split, memory.plan.micro_batch if memory else None),
                key=key_of(plan, len(split), f"{engine_version()} {memory.plan if memory else 'official'}"),
                started_s=started_s,
                validate=lambda: self._loss(model, self._dataset.val, report, memory),
                report=report,
                is_stopped=downloaded.is_stopped,
            )
        except EngineError as exc:
            raise WorkRefused("error", str(exc)) from exc
        new = trained.weights
        return TrainResult(
            weights=new if manifest is asked else replaced(asked.table, weights, manifest.table, new),
            examples=trained.sent.examples,
            train_loss=trained.own.loss,
            val_loss=trained.val_loss,
            affinity=trained.sent.affinities.result(),
            wall_s=trained.wall_s,
            peak_rss_bytes=peak_rss_bytes(),
            memory=memory.use if memory else None,
        )

    def evaluate(
        self, downloaded: DownloadedPlan, report: Report, channel: SplitLearningChannel | None = None
    ) -> EvaluationResult:
        """Measure the losses and the metrics over `plan.data_split`. Raises WorkRefused."""
        if downloaded.manifest.linear is not None:
            return self._retry(downloaded.plan, lambda: self._linear.evaluate(downloaded, self._watched(report)))
        return self._retry(downloaded.plan, lambda: self._evaluate(downloaded, self._watched(report), channel))

    def _evaluate(
        self, downloaded: DownloadedPlan, report: Report, channel: SplitLearningChannel | None
    ) -> EvaluationResult:
        started_s = time.monotonic()
        restart_peak()
        plan, store, weights = downloaded.plan, downloaded.graphs, downloaded.weights
        assert plan.data_split is not None
        split = self._dataset.splits[plan.data_split]
        if split is None:
            raise WorkRefused("no_data", f"this device has no {plan.data_split} set")
        asked, manifest = downloaded.manifest, self._labelled(downloaded.manifest, split)
        start = weights if manifest is asked else transfer(asked.table, weights, manifest.table)
        start = self._rounds.restored(plan, manifest.table, start)
        model = self._model(manifest, store, start, split, remote=self._remote(plan, manifest, channel))
        try:
            model.begin_round()
            metrics = TaskMetrics(model)
            loss = self._loss(model, split, report, metrics=metrics)
            model.finish_round()
        except EngineError as exc:
            raise WorkRefused("error", str(exc)) from exc
        assert loss is not None
        return EvaluationResult(
            loss=loss,
            metrics=metrics.result() or None,
            examples=split.examples(model.tasks),
            wall_s=time.monotonic() - started_s,
            peak_rss_bytes=peak_rss_bytes(),
        )

    def _remote(
        self, plan: Plan, manifest: Manifest, channel: SplitLearningChannel | None, memory: PlannedMemory | None = None
    ) -> RemoteEncoder | None:
        """Return the encoder of split learning. Raises EncoderServerUnavailable for settings that it does not have."""
        if plan.split_learning is None:
            return None
        assert channel is not None
        if plan.training is not None:
            check_settings(plan.training)
        samples = EVALUATION_SAMPLES if plan.training is None else plan.training.batch
        channel.open(MessageLayout.of(manifest, samples).max_message_bytes)
        in_flight = memory.in_flight if memory else 1
        return RemoteEncoder(
            manifest,
            channel,
            plan.round,
            samples,
            precision=plan.split_learning.precision,
            in_flight=in_flight,
            noise=plan.split_learning.noise,
            noise_key=self._noise_key,
        )

    def _planned(self, manifest: Manifest, settings: Training, plan: Plan) -> PlannedMemory:
        """Plan the training in the memory budget. Raises WorkRefused if no plan fits."""
        split, received_bytes = self._dataset.train, 4 * manifest.table.size
        masks_bytes = sum(len(split) for task in manifest.task_names if not split.labelled(task).all())
        try:
            return plan_memory(
                manifest,
                settings,
                budget_bytes=self._budget_bytes,
                base_bytes=None if self._base_bytes is None else self._base_bytes + received_bytes + masks_bytes,
                evaluates=self._dataset.val is not None,
                update=plan.updates,
                parts=plan.split_learning.parts if plan.split_learning else 1,
                samples=len(split),
                personal=plan.personal,
            )
        except BudgetTooSmall as exc:
            raise WorkRefused("memory", str(exc)) from exc

    def _started_engine(self, arena_bytes: int | None = None) -> Engine:
        """Return the engine, which is started on the first call, with an arena of this size."""
        if self._engine is None:
            self._engine = Engine(self._threads, arena_bytes or ARENA_BYTES)
        return self._engine

    def _training_step(self, manifest: Manifest, store: BlobStore) -> TrainingStep | None:
        if self._use == "off" or (self._use == "auto" and manifest.ort_training is None):
            return None
        if self._ort_training_cache is None:
            self._ort_training_cache = OrtTrainingCache(self._started_engine())
        return self._ort_training_cache.step(manifest, lambda _, digest: store.path(digest))

    @staticmethod
    def _labelled(manifest: Manifest, split: Split) -> Manifest:
        """Return the manifest of the tasks that the split has labels of. Raises WorkRefused if there are none."""
        tasks = tuple(split.examples(manifest.task_names))
        if not tasks:
            names = ", ".join(manifest.task_names)
            raise WorkRefused("no_data", f"this device has no labels for {names}; it has {', '.join(split.tasks)}")
        return manifest if tasks == manifest.task_names else manifest.group(tasks, manifest.weights)

    def _model(
        self,
        manifest: Manifest,
        store: BlobStore,
        weights: Vector,
        split: Split,
        step: TrainingStep | None = None,
        memory: PlannedMemory | None = None,
        remote: EncoderBackend | None = None,
    ) -> Model:
        check_fits(manifest, split)
        try:
            if self._graph_cache is None:
                self._graph_cache = GraphCache(self._started_engine(memory.arena_bytes if memory else None))
            batch = 1 if memory is None else memory.plan.micro_batch
            graphs = self._graph_cache.of(manifest, lambda _, digest: store.path(digest), batch)
        except BundleInvalid as exc:
            raise WorkRefused("bundle", str(exc)) from exc
        plan = memory.plan if memory else None
        saved, frozen = (plan.saved, plan.frozen) if plan else ((), 0)
        return Model(manifest, graphs, weights, step, save_activations=saved, frozen=frozen, encoder=remote)

    @staticmethod
    def _loss(
        model: Model,
        split: Split | None,
        report: Report,
        memory: PlannedMemory | None = None,
        metrics: TaskMetrics | None = None,
    ) -> dict[str, float] | None:
        if split is None:
            return None
        stage: WorkStage = "evaluate"
        report(stage, 0, len(split))
        batch = memory.evaluation_batch if memory else EVALUATION_BATCH
        return evaluate(model, split, batch, metrics=metrics, report=lambda done, total: report(stage, done, total))
