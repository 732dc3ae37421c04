"""server.toml: nested structs that are the file, its flags and the objects in use; what goes together is checked here.

federation = "home"
bundle = "bundle"             # paths are relative to this file

[grouping]
merged_rounds = 70
groups = 3

[training]
optimizer = "adamw"
lr = 1e-3

docs/settings.md has every key. A flag goes over its key.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_server.aggregation.linear import LinearRule, ProximalStep, linear_rule
from broker_server.aggregation.linear_settings import LinearSettings
from broker_server.aggregation.personal import PersonalSettings, personal_terms
from broker_server.aggregation.rules import Aggregation
from broker_server.operator.settings import MetricsSettings, PageSettings
from broker_server.rounds.encoder_process import EncoderRounds
from broker_server.rounds.rules import Rules
from broker_server.rounds.terms import Terms
from broker_server.server.broker_settings import BrokerSettings
from broker_server.server.old_keys import renewed
from broker_server.strategies.fixed import FixedGroups
from broker_server.strategies.settings import LINEAR, PERSONAL, RELATED, Grouping
from devices.cli.log import LogSettings
from devices.cli.settings import (
    COMMAND_LINE,
    ConfigInvalid,
    Effective,
    Tree,
    beside,
    build,
    read_toml,
    settings_of,
    tables_of,
)
from edge_runtime.wire.augmentation import augmentation
from edge_runtime.wire.compression import Updates
from edge_runtime.wire.encoder_pipe import Provider
from edge_runtime.wire.errors import AugmentationImpossible
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import SplitLearning, Training
from edge_runtime.wire.names import FederationName, TaskName
from edge_runtime.wire.reconstruction import fault as reconstruction_fault
from edge_runtime.wire.training import COMMON, TrainingSettings

GENERAL = "general"
"""The folder in the state folder for the encoders that devices have trained in a round."""


class SplitLearningSettings(SplitLearning, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who computes the encoder, and how what crosses is sent."""

    encoder: Annotated[
        Literal["auto", "device", "server"],
        Meta(
            description="who computes the encoder (a server needs a bundle with a stem); auto: the server with fedbone"
        ),
    ] = "auto"
    allow_reconstruction: Annotated[
        bool,
        Meta(description="go on with a stem from whose embeddings inputs were made again, or which was not tried"),
    ] = False
    devices: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="devices served at once, each up to 7 times the encoder's parameters (adamw: 10)",
        ),
    ] = 16
    idle_s: Annotated[
        float, Meta(gt=0, le=86_400, description="silence after which a device has left; it begins its round again")
    ] = 120.0
    threads: Annotated[int, Meta(ge=0, le=1024, description="threads that compute; 0 for one for each core")] = 0
    provider: Annotated[Provider, Meta(description="what computes; cuda needs a build of onnxruntime that has it")] = (
        "cpu"
    )


class OrtTrainingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ONNX Runtime training artifacts, for devices that ask for them."""

    python: Annotated[Path | None, Meta(description="a Python with onnxruntime-training, which makes them")] = None
    limit_s: Annotated[float, Meta(gt=0, le=86_400, description="longest that making them may take")] = 1800.0


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's configuration."""

    federation: Annotated[FederationName, Meta(description="the federation's name", extra=COMMON)] = "home"
    state: Annotated[Path, Meta(description="folder for everything that is kept", extra=COMMON)] = Path("runs/server")
    bundle: Annotated[
        Path | None,
        Meta(description="folder of the compiled model (default: bundle in the state folder)", extra=COMMON),
    ] = None
    tasks: Annotated[tuple[TaskName, ...], Meta(description="tasks to train (default: all)", extra=COMMON)] = ()
    seed: Annotated[int, Meta(ge=0, le=2**53, description="the same seed gives the same weights", extra=COMMON)] = 0
    local_stems: Annotated[
        bool, Meta(description="each device trains a stem of its own and never sends it (personalised)")
    ] = False
    broker: Annotated[BrokerSettings, Meta(description="the broker that the server starts")] = BrokerSettings()
    rounds: Annotated[Rules, Meta(description="who takes part in a round, and how long it waits")] = Rules()
    grouping: Annotated[Grouping, Meta(description="which tasks are trained together, and for how long")] = Grouping()
    training: Annotated[TrainingSettings, Meta(description="how devices train")] = TrainingSettings()
    personal: Annotated[
        PersonalSettings, Meta(description="how devices train what is their own", extra={"prefix": "personal-"})
    ] = PersonalSettings()
    linear: Annotated[LinearSettings, Meta(description="rules for linear models", extra={"prefix": "linear-"})] = (
        LinearSettings()
    )
    updates: Annotated[Updates, Meta(description="how devices send what they trained")] = Updates()
    aggregation: Annotated[Aggregation, Meta(description="how devices' changes of the encoder are combined")] = (
        Aggregation()
    )
    split_learning: Annotated[
        SplitLearningSettings, Meta(description="who computes the encoder", extra={"prefix": "split-learning-"})
    ] = SplitLearningSettings()
    metrics: Annotated[MetricsSettings, Meta(description="metrics for Prometheus", extra={"prefix": "metrics-"})] = (
        MetricsSettings()
    )
    page: Annotated[PageSettings, Meta(description="the live page", extra={"prefix": "page-"})] = PageSettings()
    log: Annotated[LogSettings, Meta(description="what the server logs, and how", extra={"prefix": "log-"})] = (
        LogSettings()
    )
    ort_training: Annotated[
        OrtTrainingSettings, Meta(description="ONNX Runtime training artifacts", extra={"prefix": "ort-training-"})
    ] = OrtTrainingSettings()

    @property
    def is_apart(self) -> bool:
        """Whether the server computes the encoder."""
        encoder = self.split_learning.encoder
        return encoder == "server" or (encoder == "auto" and self.grouping.strategy == "fedbone")

    @property
    def shared_encoder(self) -> EncoderRounds | None:
        """What the server needs to compute the encoder; None where devices do."""
        if not self.is_apart:
            return None
        return EncoderRounds(
            results=self.state / GENERAL,
            settings=SplitLearning(
                precision=self.split_learning.precision,
                parts=self.split_learning.parts,
                noise=self.split_learning.noise,
            ),
            most_devices=self.split_learning.devices,
            idle_s=self.split_learning.idle_s,
        )

    @property
    def first_training(self) -> Training:
        """How devices train in a first round that probes; a round sets what depends on it."""
        return Training(
            **self.training.optimization,
            epochs=self.training.epochs,
            first_epoch=0,
            seed=self.seed,
            probe_every=self.grouping.probe_every,
            probe=self.grouping.probe,
            weighting=self.training.task_weighting,
        )

    @property
    def encoder_aggregation(self) -> Aggregation:
        """How devices' changes of the encoder are combined, `auto` being the strategy's own rule."""
        return self.aggregation.resolved("gpaggregation" if self.grouping.strategy == "fedbone" else "mean")

    @property
    def bundle_path(self) -> Path:
        """Where the bundle is, or is waited for."""
        return self.bundle or self.state / "bundle"

    def terms(self, bundle: Manifest) -> Terms:
        """Return what a federation over a bundle is begun with. Raises ConfigInvalid, SplitImpossible."""
        tasks = self.tasks or bundle.task_names
        if unknown := sorted(set(tasks) - set(bundle.task_names)):
            raise ConfigInvalid(f"tasks: the bundle has no {unknown[0]!r}; it has {', '.join(bundle.task_names)}")
        if unknown := sorted(set(self.training.task_weights) - set(tasks)):
            raise ConfigInvalid(f"training.task_weights: {unknown[0]!r} is not one of the tasks {', '.join(tasks)}")
        if bundle.embedding is None and self.is_apart:
            raise ConfigInvalid(
                "split_learning.encoder: the bundle's model has no stem, so the server cannot compute it"
            )
        if bundle.embedding is None and self.local_stems:
            raise ConfigInvalid("local_stems: the bundle's model has no stem, so devices cannot train one of their own")
        try:
            augmentation(bundle.group(tasks, bundle.weights), self.training)
        except AugmentationImpossible as exc:
            raise ConfigInvalid(f"training: {exc}") from exc
        if "encoder" not in bundle.table.parts:
            self._check_fixed_encoder()
        rule = linear_rule(self.grouping.strategy, self.linear, self.rounds.max_staleness)
        self._check_linear(bundle, rule)
        rounds = self.grouping.merged_rounds + self.grouping.split_rounds
        return Terms(
            tasks=tasks,
            strategy=self.grouping.planner(tasks, self.seed)
            if rule is None
            else FixedGroups(tasks, (tasks,), rounds=rule.rounds(rounds)),
            training=self.first_training,
            updates=self.updates,
            aggregation=self.encoder_aggregation,
            max_age=self.rounds.max_age("train"),
            discount=self.rounds.staleness if self.rounds.mode == "buffered" else "none",
            settings=self.fingerprint(),
            shared_encoder=self.shared_encoder,
            personal=personal_terms(self.grouping.strategy, self.personal, stem=self.local_stems),
            linear=rule,
        )

    def check_reconstruction(self, bundle: Manifest) -> None:
        """Raise ConfigInvalid for a bundle whose embeddings may give inputs back, unless the settings allow that."""
        if self.shared_encoder is None or self.split_learning.allow_reconstruction:
            return
        if found := reconstruction_fault(bundle.reconstruction, self.shared_encoder.settings):
            raise ConfigInvalid(
                f"split_learning: {found}: with allow_reconstruction = true it is allowed, here and on each device"
            )

    def _check_linear(self, bundle: Manifest, rule: LinearRule | None) -> None:
        strategy = self.grouping.strategy
        if (rule is None) != (bundle.linear is None):
            kind = "linear: take 'mocha', 'proximal_mtl' or 'mixed_effect'" if rule is None else "not linear"
            raise ConfigInvalid(f"grouping.strategy: {strategy!r} does not go with the bundle, whose model is {kind}")
        if bundle.linear is None:
            return
        loss = bundle.linear.loss
        if isinstance(rule, ProximalStep) and loss == "hinge":
            raise ConfigInvalid(f"grouping.strategy: {strategy!r} wants a smooth loss, and the bundle's is 'hinge'")
        if strategy == "mixed_effect" and loss not in {"squared", "half_squared"}:
            raise ConfigInvalid(f"grouping.strategy: 'mixed_effect' wants a squared loss, and the bundle's is {loss!r}")

    def _check_fixed_encoder(self) -> None:
        if self.is_apart:
            raise ConfigInvalid("split_learning.encoder: the bundle's encoder has nothing to train: give 'device'")
        if self.grouping.needs_affinities and self.grouping.groups > 1:
            raise ConfigInvalid(
                f"grouping.strategy: {self.grouping.strategy!r} groups tasks by how they change the encoder, and the "
                "bundle's has nothing to train: take 'all_in_one' or 'fixed'"
            )

    def fingerprint(self) -> str:
        """Return the settings that a federation cannot change once it has begun, as JSON.

        State folders have it, so its words are those of the first version, whatever the keys are called today.
        """
        grouping, split = self.grouping, self.split_learning
        facts: dict[str, object] = {"strategy": grouping.strategy, "federation": self.federation, "tasks": self.tasks}
        for name in ("merged_rounds", "probe_from", "probe_rounds", "probe", "split_rounds", "groups", "at_most"):
            facts[name] = getattr(grouping, name)
        facts["seed"] = self.seed
        for name in ("fixed_groups", "start", "lr_schedule"):
            facts[name] = getattr(grouping, name)
        facts["choice"] = "worth" if grouping.method == "training_cost" else grouping.method
        facts |= grouping.choice_facts
        facts |= {"stems": "own"} if self.local_stems else {}
        facts |= {"personal": self.personal} if grouping.strategy in PERSONAL else {}
        facts |= {"linear": self.linear} if grouping.strategy in LINEAR else {}
        if self.is_apart:
            facts["general"] = "host" if split.encoder == "server" else split.encoder
            facts |= {"general_precision": split.precision, "general_parts": split.parts}
            if split.noise:
                facts["general_noise"] = split.noise
        facts |= {"order": grouping.order, "hold": grouping.hold} if grouping.strategy == "successive" else {}
        for name in ("head_cost", "confidence", "confidence_rounds"):
            facts[name] = getattr(grouping, name)
        if not self.encoder_aggregation.is_plain:  # left out where it is as it was before there was anything else
            facts["aggregation"] = self.encoder_aggregation
        return msgspec.json.encode(facts).decode()


SETTINGS = settings_of(ServerConfig)
TABLES = tables_of(ServerConfig)


def read(path: Path | None = None, flags: Tree | None = None) -> Effective[ServerConfig]:
    """Return the configuration in a file, or the default one, with the flags over it.

    Paths in the file are relative to it, those of flags to the working folder. Raises ConfigInvalid.
    """
    layers = []
    if path is not None:
        layers.append((str(path), beside(path, renewed(str(path), read_toml(path), SETTINGS), ServerConfig)))
    found = build(ServerConfig, [*layers, (COMMAND_LINE, flags or {})])
    check(found.value)
    return found


def check(config: ServerConfig) -> None:
    """Raise ConfigInvalid for settings that do not go together."""
    grouping, rounds = config.grouping, config.rounds
    if len(set(config.tasks)) != len(config.tasks):
        raise ConfigInvalid("tasks: one of them is there twice")
    config.broker.check()
    if rounds.clients_per_round and rounds.quorum > rounds.clients_per_round:
        raise ConfigInvalid(
            f"rounds.quorum: {rounds.quorum} results cannot come from the {rounds.clients_per_round} clients of a round"
        )
    if rounds.mode == "buffered":
        _check_buffered(config)
    if config.training.task_weights and config.training.weighting != "fixed":
        raise ConfigInvalid(
            f"training.task_weights: with weighting = {config.training.weighting!r} the weights are learned: "
            "leave them out"
        )
    if config.local_stems and grouping.strategy not in {"all_in_one", "fedbone", "fedper", "fedrep"}:
        raise ConfigInvalid(
            "local_stems: they go with the strategies all_in_one, fedbone, fedper and fedrep, which train one group"
        )
    check_personal(config)
    check_linear(config)
    if (
        config.is_apart
        and grouping.needs_affinities
        and grouping.probe_rounds
        and grouping.probe_every
        and (grouping.probe != "representation")
    ):
        raise ConfigInvalid(
            f"grouping.probe: {grouping.probe!r} needs the encoder on devices: with split_learning.encoder = 'server', "
            "only 'representation' can be"
        )
    _check_grouping(grouping)


def _check_grouping(grouping: Grouping) -> None:
    """Raise ConfigInvalid for keys of [grouping] that do not go together."""
    splits = grouping.needs_affinities and grouping.groups > 1
    if splits and grouping.probe_rounds and grouping.probe_from >= grouping.merged_rounds:
        raise ConfigInvalid(
            f"grouping.probe_from: the merged phase has {grouping.merged_rounds} rounds, so none is probed from round "
            f"{grouping.probe_from} on"
        )
    if splits and not (grouping.probe_rounds and grouping.probe_every):
        raise ConfigInvalid(
            "grouping.probe_rounds and grouping.probe_every: a split needs affinities, so neither may be 0"
        )
    if grouping.confidence and grouping.strategy == "mas" and not grouping.needs_affinities:
        raise ConfigInvalid(
            f"grouping.confidence: it is that of affinities, which the method {grouping.method!r} does not measure"
        )
    if grouping.at_most and grouping.strategy == "mas" and grouping.method == "hybrid":
        raise ConfigInvalid("grouping.at_most: the method 'hybrid' tries divisions into exactly `groups` groups")
    if (grouping.strategy == "fixed") != bool(grouping.fixed_groups):
        raise ConfigInvalid("grouping.fixed_groups: the strategy `fixed` needs them, and no other may have them")


def check_linear(config: ServerConfig) -> None:
    """Raise ConfigInvalid for settings that do not go with linear models."""
    strategy = config.grouping.strategy
    if config.linear.passes_of and strategy != "mocha":
        raise ConfigInvalid("linear.passes_of: budgets of single devices are for the strategy mocha")
    rounds = config.rounds
    if strategy == "amtl":
        if rounds.mode != "buffered" or rounds.buffer_size != 1:
            raise ConfigInvalid("rounds.mode: 'amtl' hears one device at a time: give 'buffered', and buffer_size = 1")
    elif strategy in LINEAR and rounds.mode == "buffered":
        raise ConfigInvalid(f"rounds.mode: {strategy!r} makes weights of one round's answers: take 'synchronous'")


def _check_buffered(config: ServerConfig) -> None:
    rounds = config.rounds
    if config.is_apart:
        raise ConfigInvalid("rounds.mode: split learning trains one version at a time: take 'synchronous'")
    if rounds.quorum:
        raise ConfigInvalid("rounds.quorum: with mode = 'buffered' a round closes when buffer_size results are here")
    if rounds.over_selection:
        raise ConfigInvalid("rounds.over_selection: with mode = 'buffered' nobody is waited for: leave it out")
    if config.grouping.strategy in RELATED:
        raise ConfigInvalid("rounds.mode: weights for each device are made of one round's: take 'synchronous'")


def check_personal(config: ServerConfig) -> None:
    """Raise ConfigInvalid for settings that do not go with what devices have of their own."""
    strategy, training = config.grouping.strategy, config.training
    if strategy in {"fedrep", "ditto", "pfedme", "successive", *RELATED} and config.is_apart:
        raise ConfigInvalid(f"split_learning.encoder: with {strategy!r} devices have the encoder: give 'device'")
    if strategy in {"deep_mocha", "multilinear", "successive"} and training.proximal_mu:
        raise ConfigInvalid(f"training.proximal_mu: {strategy!r} holds weights to centres of its own: leave it out")
    if strategy == "pfedme" and (training.proximal_mu or training.optimizer != "sgd"):
        raise ConfigInvalid(
            "training.proximal_mu and training.optimizer: pfedme has a proximal term of its own, and plain steps: "
            "leave both out"
        )
