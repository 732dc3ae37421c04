"""How a federation is run: the keys of server.toml with their defaults, what goes together, and what they come to."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_server.aggregation.encoder import Aggregation, Rule
from broker_server.aggregation.server_optimizer import ServerOptimizer, Share, StepRate, Tau
from broker_server.grouping.search import Mode  # noqa: TC001  (a union of it is read by msgspec)
from broker_server.rounds.coordinator import Rules
from broker_server.rounds.encoder_process import SharedEncoder
from broker_server.rounds.federation import Terms
from broker_server.strategies.fixed import FixedGroups
from broker_server.strategies.hoa import Hoa
from broker_server.strategies.mas import Choice, Mas, Schedule, Start, finder
from broker_server.strategies.planner import Strategy
from broker_server.strategies.tag import Tag
from edge_runtime.wire.compression import TOPK_FRACTION, AnyScheme, TopkFraction, Updates
from edge_runtime.wire.encoder_pipe import Provider
from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Precision, SplitTraining, Training
from edge_runtime.wire.names import MAX_TASKS, FederationName, TaskName, Tasks
from edge_runtime.wire.training import (
    CAGradRadius,
    FixedWeighting,
    GradientCombination,
    GradNormWeighting,
    ProbeMethod,
    Rate,
    TaskWeighting,
    UncertaintyWeighting,
    Weight,
)

GENERAL = "general"
"""The folder in the state folder for what devices teach a general model in a round."""
Rounds = Annotated[int, Meta(ge=1, le=100_000)]
Many = Annotated[int, Meta(ge=0, le=100_000)]
StrategyName = Literal["mas", "one_by_one", "all_in_one", "fixed", "tag", "hoa", "fedbone"]
AggregationName = Literal["auto", "mean", "gpaggregation", "pcgrad", "cagrad"]
Groups = Annotated[tuple[Annotated[tuple[TaskName, ...], Meta(min_length=1)], ...], Meta(max_length=64)]


class ConfigInvalid(ValueError):
    """The configuration cannot be used; the sentence names the key."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A server's configuration."""

    federation: FederationName = "home"
    state: Path = Path("runs/server")
    host: Annotated[str, Meta(min_length=1, max_length=255)] = "0.0.0.0"  # noqa: S104  (every device has a token)
    port: Annotated[int, Meta(ge=0, le=65535)] = 1883
    certificate: Path | None = None
    """PEM, with its `key`: the embedded broker speaks TLS, and only that."""
    key: Path | None = None
    bundle: Path | None = None
    """The folder of a compiled model; `bundle` in the state folder where it is not given."""

    official_python: Path | None = None
    """The Python with onnxruntime-training: official artifacts are made with it for devices that ask for them."""
    official_limit_s: Annotated[float, Meta(gt=0, le=86_400)] = 1800.0
    """How long making them may take; the federation waits for it."""

    tasks: tuple[TaskName, ...] = ()
    """The tasks to train; all of the bundle's where none is named."""
    strategy: StrategyName = "mas"
    """How tasks are grouped: see broker_server.strategies. Every strategy trains each task for `merged_rounds` +
    `split_rounds` rounds in the model that serves it in the end."""
    fixed_groups: Groups = ()
    """The groups of the strategy `fixed`."""
    start: Start = "merged"
    """With `mas`: what the groups begin with, the merged weights or the bundle's."""
    lr_schedule: Schedule = "restart"
    """With `mas`: whether the learning rate's schedule begins anew at the split or goes on."""
    choice: Choice = "best"
    """With `mas`: how the groups are found; see broker_server.strategies.mas."""
    head_cost: Annotated[float, Meta(ge=0, le=100)] = 0.25
    """What training a head costs, the encoder being 1: for `choice` = worth."""
    confidence: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """With `mas`: split as soon as the best split was the best with this confidence (bootstrap over devices) …"""
    confidence_rounds: Rounds = 3
    """… in so many rounds, and after `merged_rounds` at the latest; 0 to split then."""
    merged_rounds: Rounds = 20
    probe_from: Many = 0
    """Affinities are probed from this round of the merged phase on …"""
    probe_rounds: Many = 10
    """… in so many rounds …"""
    probe_every: Many = 50
    """… at every so many batches …"""
    probe: ProbeMethod = "exact"
    """… by look-ahead, or to first order by the encoder's or the representation's gradients."""
    split_rounds: Rounds = 10
    groups: Annotated[int, Meta(ge=1, le=32)] = 2
    at_most: bool = False

    aggregation: AggregationName = "auto"
    """How devices' changes of the encoder are combined; `auto` is the strategy's own rule: with `fedbone`
    GPAggregation, with all others the mean."""
    server_optimizer: Literal["sgd", "adam"] = "sgd"
    """How the server steps along what they are combined to."""
    server_lr: StepRate = 1.0
    server_momentum: Share = 0.0
    """Adam's beta1, too."""
    server_beta2: Share = 0.99
    server_tau: Tau = 1e-3

    min_devices: Annotated[int, Meta(ge=1, le=100_000)] = 2
    clients_per_round: Many = 0
    quorum: Many = 0
    round_deadline_s: Annotated[float, Meta(gt=0, le=1e7)] = 3600.0

    local_epochs: Annotated[int, Meta(ge=1, le=1000)] = 1
    batch: Annotated[int, Meta(ge=1, le=65536)] = 16
    lr: Annotated[float, Meta(gt=0, le=1e3)] = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, le=1)] = 1e-4
    seed: Annotated[int, Meta(ge=0, le=2**53)] = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """AdamW takes `momentum` as its beta1."""
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Meta(gt=0, le=1)] = 1e-8
    clip_norm: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """Gradients are scaled down to this norm; 0 for never."""
    proximal_mu: Annotated[float, Meta(ge=0, le=1e3)] = 0.0
    """FedProx's mu; 0 for plain federated averaging."""
    weighting: Literal["fixed", "gradnorm", "uncertainty"] = "fixed"
    task_weights: Annotated[dict[TaskName, Weight], Meta(max_length=MAX_TASKS)] = {}
    """Fixed weights of the tasks' losses; 1 for a task that is not named."""
    gradnorm_alpha: Annotated[float, Meta(ge=0, le=10)] = 1.5
    weighting_lr: Rate = 0.025
    """How fast GradNorm or uncertainty weighting learns its weights."""

    merging: GradientCombination = "sum"
    """How tasks' gradients become one in the encoder: added, or by a rule for those that conflict."""
    cagrad_c: CAGradRadius = 0.4
    """How far CAGrad may go from the mean, in parts of its length."""

    update_scheme: AnyScheme = "fp32"
    """How devices send what they trained; `auto` leaves it to the measured speed of each one's link."""
    topk_fraction: TopkFraction = TOPK_FRACTION

    stems: Literal["shared", "own"] = "shared"
    """Of a model with a stem: whether stems are federated, or each device trains one of its own, which it never sends;
    that goes with strategies that train one group."""
    general: Literal["auto", "device", "host"] = "auto"
    """Where the encoder is computed: on each device, or by a host process of this server, for boards that cannot hold
    it (split training; the bundle needs a stem). `auto` is by the host with `fedbone`, on devices with all others."""
    general_precision: Precision = "fp32"
    """How activations and their gradients travel between a device and the host."""
    general_parts: Annotated[int, Meta(ge=1, le=64)] = 1
    """Micro-batches that a step of split training is cut into: device, link and host then work at the same time."""
    general_devices: Annotated[int, Meta(ge=1, le=10_000)] = 16
    """How many devices the host serves at once: each takes up to seven times the encoder's parameters (AdamW: ten)."""
    general_idle_s: Annotated[float, Meta(gt=0, le=86_400)] = 120.0
    """After how long the host takes a silent device to have left: it begins its round anew when it comes back."""
    general_threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    """What the host computes with; 0 for one thread for each core."""
    general_provider: Provider = "cpu"
    """cuda needs a build of onnxruntime that has it in the server's environment."""

    @property
    def is_apart(self) -> bool:
        """Whether the encoder is computed by the server's host."""
        return self.general == "host" or (self.general == "auto" and self.strategy == "fedbone")

    @property
    def apart(self) -> SharedEncoder | None:
        """How it is, if it is."""
        if not self.is_apart:
            return None
        return SharedEncoder(
            results=self.state / GENERAL,
            settings=SplitLearning(precision=self.general_precision, parts=self.general_parts),
            most_devices=self.general_devices,
            idle_s=self.general_idle_s,
        )

    @property
    def rules(self) -> Rules:
        """How many devices a round takes and how long it waits."""
        return Rules(
            min_devices=self.min_devices,
            clients_per_round=self.clients_per_round,
            quorum=self.quorum,
            deadline_s=self.round_deadline_s,
            seed=self.seed,
        )

    @property
    def training(self) -> Training:
        """How devices train in a first round that probes; a round sets what depends on it."""
        return Training(
            epochs=self.local_epochs,
            first_epoch=0,
            batch=self.batch,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            seed=self.seed,
            probe_every=self.probe_every,
            probe=self.probe,
            optimizer=self.optimizer,
            beta2=self.beta2,
            epsilon=self.epsilon,
            clip_norm=self.clip_norm,
            proximal_mu=self.proximal_mu,
            weighting=self._weighting,
            gradient_combination=self.merging,
            cagrad_c=self.cagrad_c,
        )

    @property
    def updates(self) -> Updates:
        """How devices send what they trained."""
        return Updates(scheme=self.update_scheme, topk_fraction=self.topk_fraction)

    @property
    def _weighting(self) -> TaskWeighting | None:
        match self.weighting:
            case "fixed":
                return FixedWeighting(weights=self.task_weights) if self.task_weights else None
            case "gradnorm":
                return GradNormWeighting(alpha=self.gradnorm_alpha, lr=self.weighting_lr)
            case "uncertainty":
                return UncertaintyWeighting(lr=self.weighting_lr)

    @property
    def combining(self) -> Aggregation:
        """How devices' changes of the encoder are combined, and the server's step with what comes out."""
        own: Rule = "gpaggregation" if self.strategy == "fedbone" else "mean"
        rule: Rule = own if self.aggregation == "auto" else self.aggregation
        return Aggregation(
            rule=rule,
            optimizer=ServerOptimizer(
                method=self.server_optimizer,
                lr=self.server_lr,
                momentum=self.server_momentum,
                beta2=self.server_beta2,
                tau=self.server_tau,
            ),
            cagrad_c=self.cagrad_c if rule == "cagrad" else Aggregation().cagrad_c,
        )

    @property
    def bundle_path(self) -> Path:
        """Where the bundle is, or is waited for."""
        return self.bundle or self.state / "bundle"

    def terms(self, bundle: Manifest) -> Terms:
        """What a federation over a bundle is begun with. Raises ConfigInvalid, SplitImpossible."""
        tasks = self.tasks or bundle.task_names
        if unknown := sorted(set(tasks) - set(bundle.task_names)):
            raise ConfigInvalid(f"tasks: the bundle has no {unknown[0]!r}; it has {', '.join(bundle.task_names)}")
        if unknown := sorted(set(self.task_weights) - set(tasks)):
            raise ConfigInvalid(f"task_weights: {unknown[0]!r} is not one of the tasks {', '.join(tasks)}")
        if bundle.embedding is None and (self.is_apart or self.stems == "own"):
            key, why = "stems", "devices cannot have stems of their own"
            if self.is_apart:
                key, why = "general", "its encoder cannot be computed by a host"
            raise ConfigInvalid(f"{key}: the bundle's model has no stem, so {why}")
        return Terms(
            tasks=tasks,
            strategy=self.planner(tasks),
            training=self.training,
            updates=self.updates,
            aggregation=self.combining,
            settings=self.fingerprint(),
            shared_encoder=self.apart,
            local_stems=self.stems == "own",
        )

    def planner(self, tasks: Tasks) -> Strategy:
        """The strategy for these tasks. Raises SplitImpossible."""
        rounds = self.merged_rounds + self.split_rounds
        mode: Mode = "at_most" if self.at_most else "exactly"
        match self.strategy:
            case "one_by_one":
                return FixedGroups(tasks, tuple((task,) for task in sorted(tasks)), rounds=rounds)
            case "all_in_one" | "fedbone":
                return FixedGroups(tasks, (tasks,), rounds=rounds)
            case "fixed":
                return FixedGroups(tasks, self.fixed_groups, rounds=rounds)
            case "hoa":
                return Hoa(tasks, rounds=rounds, groups=self.groups)
            case "tag":
                return Tag(
                    tasks,
                    rounds=rounds,
                    groups=self.groups,
                    probe_from=self.probe_from,
                    probe_rounds=self.probe_rounds,
                )
            case "mas":
                return Mas(
                    tasks,
                    merged_rounds=self.merged_rounds,
                    split_rounds=self.split_rounds,
                    probe_from=self.probe_from,
                    probe_rounds=self.probe_rounds,
                    groups=self.groups,
                    mode=mode,
                    find=finder(self.choice, self.groups, mode, seed=self.seed, head_cost=self.head_cost),
                    start=self.start,
                    schedule=self.lr_schedule,
                    confidence=self.confidence,
                    confidence_rounds=self.confidence_rounds,
                    seed=self.seed,
                )

    def fingerprint(self) -> str:
        """The settings that a federation cannot change once it has begun, as JSON."""
        kept = ["federation", "tasks", "merged_rounds", "probe_from", "probe_rounds", "probe", "split_rounds", "groups"]
        kept += ["at_most", "seed", "fixed_groups", "start", "lr_schedule", "choice"]
        kept += ["stems"] if self.stems == "own" else []
        kept += ["general", "general_precision", "general_parts"] if self.is_apart else []
        kept += ["head_cost", "confidence", "confidence_rounds"]
        facts = {name: getattr(self, name) for name in ("strategy", *kept)}
        if not self.combining.is_plain:  # left out where it is as it was before there was anything else
            facts["aggregation"] = self.combining
        return msgspec.json.encode(facts).decode()


def check(config: ServerConfig) -> None:
    """Raises ConfigInvalid for settings that do not go together."""
    if len(set(config.tasks)) != len(config.tasks):
        raise ConfigInvalid("tasks: one of them is there twice")
    if (config.certificate is None) != (config.key is None):
        alone, other = ("key", "certificate") if config.certificate is None else ("certificate", "key")
        raise ConfigInvalid(f"{alone}: for TLS the broker needs a {other} as well")
    if config.clients_per_round and config.quorum > config.clients_per_round:
        raise ConfigInvalid(
            f"quorum: {config.quorum} results cannot come from the {config.clients_per_round} clients of a round"
        )
    if config.task_weights and config.weighting != "fixed":
        raise ConfigInvalid(
            f"task_weights: with weighting = {config.weighting!r} the weights are learnt: leave them out"
        )
    if config.stems == "own" and config.strategy not in {"all_in_one", "fedbone"}:
        raise ConfigInvalid("stems: own stems go with the strategies all_in_one and fedbone, which train one group")
    probes = config.strategy in {"mas", "tag"} and config.probe_rounds and config.probe_every
    if config.is_apart and probes and config.probe != "representation":
        raise ConfigInvalid(
            f"probe: {config.probe!r} needs the encoder on devices: with general = 'host', only 'representation' can be"
        )
    splits = config.strategy in {"mas", "tag"} and config.groups > 1
    if splits and config.probe_rounds and config.probe_from >= config.merged_rounds:
        raise ConfigInvalid(
            f"probe_from: the merged phase has {config.merged_rounds} rounds, so none is probed from round "
            f"{config.probe_from} on"
        )
    if splits and not (config.probe_rounds and config.probe_every):
        raise ConfigInvalid("probe_rounds and probe_every: a split needs affinities, so neither may be 0")
    if (config.strategy == "fixed") != bool(config.fixed_groups):
        raise ConfigInvalid("fixed_groups: the strategy `fixed` needs them, and no other may have them")
