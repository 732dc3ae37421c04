"""Personal methods: what each device has of its own in a federation, and what plans say of it.

- fedper    the heads, trained with the rest and never sent (Arivazhagan et al., 2019)
- fedrep    the heads, trained first, then the rest alone (Collins et al., ICML 2021)
- ditto     a model beside the federation's, held to it (Li et al., ICML 2021)
- pfedme    a model that the federation's follows (Dinh et al., NeurIPS 2020)
- fedu      weights for each device, moved to its neighbours' (relations.py)
- mat_fl    weights for each device, but for heads, a mean over those that are like it (relations.py)
- fedhca2   weights for each device, pushed by all others' changes as far as that pays (hca2.py)
- deep_mocha, multilinear    heads for each device, held by those of all others (priors.py)
"""

# coverage: every branch

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from broker_server.aggregation.hca2 import HyperWeights
from broker_server.aggregation.priors import Prior, TaskCovariance, TensorNormal
from broker_server.aggregation.relations import Laplacian, OwnHeads, Relation, Similarity
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.names import DeviceId
from edge_runtime.wire.personal import MoreauModel, OwnModel, OwnParts, Personal
from edge_runtime.wire.tensors import STATE, TensorTable

STRENGTH = {"ditto": 1.0, "pfedme": 15.0, "fedu": 0.5, "deep_mocha": 0.01, "multilinear": 1e-9}
"""The strengths that methods have of themselves: those of the papers, or a guess where these choose by validation."""


class PersonalSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How devices train what is their own: the table [personal] of server.toml."""

    strength: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            description="how strongly a device's model is held to the federation's, with deep_mocha and multilinear "
            "its heads by others', with fedu how far it moves to its neighbours' mean; 0 for the method's own: "
            "ditto 1, pfedme 15, fedu 0.5, deep_mocha 0.01, multilinear 1e-9",
        ),
    ] = 0.0
    own_epochs: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="passes over the data, in a round, for the heads (fedrep) or the device's model (ditto)",
        ),
    ] = 1
    inner_steps: Annotated[
        int, Meta(ge=1, le=1000, description="with pfedme: steps of the device's model on each batch")
    ] = 5
    inner_lr: Annotated[float, Meta(gt=0, le=1e3, description="with pfedme: their learning rate")] = 0.01
    threshold: Annotated[
        float, Meta(ge=0, le=1, description="with mat_fl: added to the cosines of devices' weights, for softer groups")
    ] = 0.0
    conflict: Annotated[
        float,
        Meta(ge=0, lt=1, description="with fedhca2: how far its changes may go from the mean, in parts of its length"),
    ] = 0.4
    neighbours: Annotated[
        dict[DeviceId, tuple[DeviceId, ...]],
        Meta(max_length=100_000, description="with fedu: each device's neighbours; all others where none are named"),
    ] = {}


@dataclass(frozen=True, kw_only=True)
class PersonalTerms:
    """What devices of a federation have of their own: parts that are never sent, or a model."""

    heads: bool = False
    stem: bool = False
    own_epochs: int = 0
    model: OwnModel | MoreauModel | None = None
    relation: Relation | HyperWeights | None = None
    """What makes weights for each device of a round's; None where there is one vector for all."""
    prior: Prior | None = None
    """What holds each device's heads, given all others'."""

    def parts(self, table: TensorTable) -> tuple[str, ...]:
        """Return the parts of a group's table that devices never send, without their state."""
        kinds = {"head"} if self.heads else set()
        kinds |= {"stem"} if self.stem else set()
        return tuple(part for part in table.parts if part.split(".")[0] in kinds and not part.startswith(STATE))

    def of(self, table: TensorTable, start: Blob | None) -> Personal | None:
        """Return what a plan says: `start` is the file of the first values of the parts, None where there are none."""
        if start is None:
            return self.model
        return OwnParts(parts=self.parts(table), start=start, own_epochs=self.own_epochs)


def personal_terms(strategy: str, settings: PersonalSettings, *, stem: bool) -> PersonalTerms:
    """Return what devices have of their own by a strategy; with `stem` they have stems of their own as well."""
    strength = settings.strength or STRENGTH.get(strategy, 1.0)
    terms = PersonalTerms(stem=stem)
    match strategy:
        case "fedper":
            terms = PersonalTerms(heads=True, stem=stem)
        case "fedrep":
            terms = PersonalTerms(heads=True, stem=stem, own_epochs=settings.own_epochs)
        case "ditto":
            terms = PersonalTerms(model=OwnModel(strength=strength, epochs=settings.own_epochs))
        case "pfedme":
            model = MoreauModel(strength=strength, steps=settings.inner_steps, lr=settings.inner_lr)
            terms = PersonalTerms(model=model)
        case "fedu":
            terms = PersonalTerms(relation=Laplacian(step=strength, neighbours=settings.neighbours))
        case "mat_fl":
            terms = PersonalTerms(heads=True, relation=Similarity(threshold=settings.threshold))
        case "fedhca2":
            terms = PersonalTerms(relation=HyperWeights(c=settings.conflict))
        case "deep_mocha":
            terms = PersonalTerms(relation=OwnHeads(), prior=TaskCovariance(strength=strength))
        case "multilinear":
            terms = PersonalTerms(relation=OwnHeads(), prior=TensorNormal(strength=strength))
    return terms
