"""The settings of rounds: who takes part in one, and how long it waits.

A round is a version of its group's weights. In a synchronous one only what was trained from that version counts; in a
buffered one (FedBuff: Nguyen et al., AISTATS 2022) also what was trained from one up to `max_staleness` versions older,
the round closes when its buffer is full, and devices go on at once. So synchronous is the case of age 0 throughout.
"""

# coverage: every branch

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker_server.aggregation.staleness import Discount
from edge_runtime.wire.training import COMMON


class Rules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices of a round and its deadline: the table [rounds] of server.toml."""

    mode: Annotated[
        Literal["synchronous", "buffered"],
        Meta(
            description="buffered: nobody is waited for, results count as they come (FedBuff)",
            extra={"flag": "--round-mode"},
        ),
    ] = "synchronous"
    buffer_size: Annotated[
        int,
        Meta(ge=0, le=100_000, description="buffered: results that make new weights; 0 for half of those at work"),
    ] = 0
    max_staleness: Annotated[
        int,
        Meta(ge=0, le=1000, description="buffered: versions that weights may be behind when a result of them counts"),
    ] = 20
    staleness: Annotated[
        Discount,
        Meta(
            description="buffered: how much a stale result counts: 1/√(1 + age), fully, or by age and variance",
            extra={"flag": "--staleness-discount"},
        ),
    ] = "sqrt"
    min_devices: Annotated[
        int, Meta(ge=1, le=100_000, description="devices online before a round begins", extra=COMMON)
    ] = 2
    clients_per_round: Annotated[
        int, Meta(ge=0, le=100_000, description="devices drawn for a round of training; 0 for all", extra=COMMON)
    ] = 0
    quorum: Annotated[
        int, Meta(ge=0, le=100_000, description="results that a round needs; 0 for half", extra=COMMON)
    ] = 0
    work_factor: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="buffered: a device is asked for what it does in so many times what the fastest would take; "
            "0 for whole epochs",
        ),
    ] = 0.0
    stop_at: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="part of a round's time after which those who train are told to send what they have done; "
            "1 for never",
        ),
    ] = 0.9
    deadline_s: Annotated[
        float,
        Meta(gt=0, le=1e7, description="longest that a round waits", extra={**COMMON, "flag": "--round-deadline-s"}),
    ] = 3600.0
    grace_s: Annotated[
        float, Meta(ge=0, le=1e7, description="longest that a round waits for a member that is away, with a quorum")
    ] = 120.0
    over_selection: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="share of devices drawn beyond clients_per_round: the first clients_per_round results close",
        ),
    ] = 0.0
    deadline_factor: Annotated[
        float,
        Meta(
            ge=0,
            le=1000,
            description="a round's deadline is this many times what most devices took before, deadline_s at most; "
            "0 for deadline_s alone",
        ),
    ] = 0.0
    deadline_quantile: Annotated[
        float, Meta(gt=0, le=1, description="the share of answers that deadline_factor takes for most")
    ] = 0.9

    def is_buffered(self, work: str) -> bool:
        """Return whether a round of this work is buffered: losses are always measured of one version."""
        return self.mode == "buffered" and work == "train"

    def max_age(self, work: str) -> int:
        """Return how many versions behind the weights may be that a result of this work began from."""
        return self.max_staleness if self.is_buffered(work) else 0

    def stop_s(self, work: str, now_s: float, seconds: float) -> float:
        """Return when those at work who have no later round are told to send what they have done.

        `seconds` is the time that the round has from now on. Who is too old for the next buffered one is told at once.
        """
        if self.stop_at == 1 or work != "train":
            return math.inf
        return now_s if self.is_buffered(work) else now_s + self.stop_at * seconds

    def at_work(self, work: str) -> int:
        """Return how many devices are to be at work at once; 0 for all."""
        return math.ceil(self._counting(work) * (1 + self.over_selection))

    def quorum_of(self, work: str, drawn: int) -> int:
        """Return the results that a round needs which has drawn so many; of a buffered one it is the buffer's size."""
        counting = min(self._counting(work) or drawn, drawn)
        least = self.buffer_size if self.is_buffered(work) else self.quorum
        return min(least or math.ceil(counting / 2), counting)

    def enough(self, work: str, quorum: int) -> int:
        """Return the results that close a round, whoever is at work; 0 where all are waited for."""
        if self.is_buffered(work):
            return quorum
        return self._counting(work) if self.over_selection else 0

    def _counting(self, work: str) -> int:
        """Return how many results are wanted; 0 for those of all."""
        return self.clients_per_round if work == "train" else 0
