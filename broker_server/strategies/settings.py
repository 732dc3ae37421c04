"""The table [grouping] of server.toml: which strategy groups the tasks, for how many rounds, and what it needs."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_server.grouping.search import Mode  # noqa: TC001  (msgspec reads a union of it)
from broker_server.strategies.choice import GroupingMethod, choice_of
from broker_server.strategies.exhaustive import Exhaustive
from broker_server.strategies.fixed import FixedGroups
from broker_server.strategies.hoa import Hoa
from broker_server.strategies.mas import Mas, Schedule, Start
from broker_server.strategies.planner import Strategy
from broker_server.strategies.successive import Successive
from broker_server.strategies.tag import Tag
from broker_server.strategies.tree import Tree
from edge_runtime.wire.names import MAX_TASKS, TaskName, Tasks
from edge_runtime.wire.training import COMMON, ProbeMethod

MAX_ROUNDS = 100_000
StrategyName = Literal[
    "mas",
    "one_by_one",
    "all_in_one",
    "fixed",
    "tag",
    "hoa",
    "tree",
    "exhaustive",
    "successive",
    "fedbone",
    "fedper",
    "fedrep",
    "ditto",
    "pfedme",
    "fedu",
    "mat_fl",
    "fedhca2",
    "deep_mocha",
    "multilinear",
    "mocha",
    "dmtrl",
    "proximal_mtl",
    "amtl",
    "online_primal_dual",
    "mixed_effect",
]
PERSONAL = ("fedper", "fedrep", "ditto", "pfedme", "fedu", "mat_fl", "fedhca2", "deep_mocha", "multilinear")
"""Strategies of one group, in which each device has something of its own."""
RELATED = ("fedu", "mat_fl", "fedhca2", "deep_mocha", "multilinear")
"""Those of them that make weights for each device."""
LINEAR = ("mocha", "dmtrl", "proximal_mtl", "amtl", "online_primal_dual", "mixed_effect")
"""Strategies of linear models."""
TaskGroups = Annotated[tuple[Annotated[tuple[TaskName, ...], Meta(min_length=1)], ...], Meta(max_length=64)]


class Grouping(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The grouping of tasks. Every strategy trains each task for `merged_rounds` + `split_rounds` rounds in the end."""

    strategy: Annotated[StrategyName, Meta(description="how tasks are grouped", extra=COMMON)] = "mas"
    groups: Annotated[int, Meta(ge=1, le=32, description="groups that tasks are split into", extra=COMMON)] = 2
    at_most: Annotated[bool, Meta(description="with mas: that many groups or fewer")] = False
    merged_rounds: Annotated[
        int, Meta(ge=1, le=MAX_ROUNDS, description="rounds of all tasks together", extra=COMMON)
    ] = 20
    split_rounds: Annotated[int, Meta(ge=1, le=MAX_ROUNDS, description="rounds of each group", extra=COMMON)] = 10
    probe: Annotated[
        ProbeMethod,
        Meta(
            description="affinities by look-ahead, or to first order by the encoder's or the representation's gradients"
        ),
    ] = "exact"
    probe_from: Annotated[int, Meta(ge=0, le=MAX_ROUNDS, description="first round that probes affinities")] = 0
    probe_rounds: Annotated[int, Meta(ge=0, le=MAX_ROUNDS, description="rounds that probe affinities")] = 10
    probe_every: Annotated[int, Meta(ge=0, le=100_000, description="batches from one probe to the next")] = 50
    method: Annotated[
        GroupingMethod, Meta(description="with mas: how the groups are found", extra={"flag": "--grouping-method"})
    ] = "best"
    trial_rounds: Annotated[
        int, Meta(ge=1, le=MAX_ROUNDS, description="with method trials or hybrid: rounds of each group that is tried")
    ] = 1
    shortlist: Annotated[
        int, Meta(ge=1, le=1000, description="with method hybrid: the divisions whose groups are tried")
    ] = 5
    decide_every: Annotated[
        int, Meta(ge=1, le=MAX_ROUNDS, description="with strategy tree: rounds from one decision to split to the next")
    ] = 3
    draw: Annotated[
        int, Meta(ge=0, le=2**53, description="with method random: the number of the draw; 0 for the seed's own")
    ] = 0
    head_cost: Annotated[
        float, Meta(ge=0, le=100, description="with method training_cost: cost of training a head, the encoder being 1")
    ] = 0.25
    start: Annotated[Start, Meta(description="with mas: the groups begin with the merged weights, or the bundle's")] = (
        "merged"
    )
    lr_schedule: Annotated[Schedule, Meta(description="with mas: the learning rate's schedule at the split")] = (
        "restart"
    )
    confidence: Annotated[
        float,
        Meta(
            ge=0, le=1, description="with mas: split as soon as the best split has this confidence; 0 for never early"
        ),
    ] = 0.0
    confidence_rounds: Annotated[int, Meta(ge=1, le=MAX_ROUNDS, description="with confidence: in that many rounds")] = 3
    order: Annotated[
        tuple[TaskName, ...],
        Meta(max_length=MAX_TASKS, description="with successive: the tasks as they join; empty for by name"),
    ] = ()
    hold: Annotated[
        float,
        Meta(ge=0, le=1e6, description="with successive: how strongly the encoder is held to where it was before"),
    ] = 0.01
    fixed_groups: Annotated[TaskGroups, Meta(description="with strategy fixed: its groups")] = ()

    @property
    def needs_affinities(self) -> bool:
        """Return whether the strategy splits by affinities."""
        return self.strategy in {"tag", "tree"} or (self.strategy == "mas" and self.method != "trials")

    @property
    def choice_facts(self) -> dict[str, int]:
        """The keys of newer choices that count, by name: a federation that was begun without them has none."""
        facts: dict[str, int] = {}
        if self.strategy == "mas" and self.method in {"trials", "hybrid"}:
            facts |= {"trial_rounds": self.trial_rounds, "shortlist": self.shortlist}
        if self.strategy == "tree":
            facts["decide_every"] = self.decide_every
        return facts | ({"draw": self.draw} if self.draw else {})

    def planner(self, tasks: Tasks, seed: int) -> Strategy:
        """Return the strategy for these tasks. Raises SplitImpossible."""
        rounds = self.merged_rounds + self.split_rounds
        mode: Mode = "at_most" if self.at_most else "exactly"
        match self.strategy:
            case "hoa":
                return Hoa(tasks, rounds=rounds, groups=self.groups)
            case "tree":
                return Tree(
                    tasks,
                    rounds=rounds,
                    decide_every=self.decide_every,
                    groups=min(self.groups, len(tasks)),
                    head_cost=self.head_cost,
                )
            case "exhaustive":
                return Exhaustive(
                    tasks,
                    merged_rounds=self.merged_rounds,
                    split_rounds=self.split_rounds,
                    probe_from=self.probe_from,
                    probe_rounds=self.probe_rounds,
                    groups=self.groups,
                )
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
                    probe_rounds=self.probe_rounds if self.needs_affinities else 0,
                    groups=self.groups,
                    mode=mode,
                    choice=choice_of(
                        self.method,
                        self.groups,
                        mode,
                        seed=self.draw or seed,
                        head_cost=self.head_cost,
                        shortlist=self.shortlist,
                    ),
                    trial_rounds=self.trial_rounds,
                    start=self.start,
                    schedule=self.lr_schedule,
                    confidence=self.confidence,
                    confidence_rounds=self.confidence_rounds,
                    seed=seed,
                )
            case _:
                return self._known_course(tasks, rounds)

    def _known_course(self, tasks: Tasks, rounds: int) -> Strategy:
        """Return a strategy whose phases are known before any training. Raises SplitImpossible."""
        if self.strategy == "successive":
            return Successive(tasks, order=self.order, rounds=rounds, hold=self.hold)
        return FixedGroups(tasks, self._known_groups(tasks), rounds=rounds)

    def _known_groups(self, tasks: Tasks) -> tuple[Tasks, ...]:
        """Return the groups of a strategy that has them before any training."""
        if self.strategy == "fixed":
            return self.fixed_groups
        return tuple((task,) for task in sorted(tasks)) if self.strategy == "one_by_one" else (tasks,)
