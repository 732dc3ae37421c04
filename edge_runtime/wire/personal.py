"""What a device has of its own in a round: it trains it for itself, and keeps it from one round to the next.

    OwnParts     parts of the model that are never sent: heads (FedPer, FedRep), the stem (FedBone)
    OwnModel     a second model, held to the federation's (Ditto)
    MoreauModel  a model that the federation's follows, both in one training (pFedMe)

Parts may also be held to a centre that the server has worked out for this device alone (Held).

What a device measures, it measures with what it has of its own.
"""

# coverage: every branch

from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.wire.blob import Blob
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.graph_names import PartName
from edge_runtime.wire.names import MAX_TASKS
from edge_runtime.wire.tensors import STATE, TensorTable

Strength = Annotated[float, Meta(gt=0, le=1e6)]
Epochs = Annotated[int, Meta(ge=1, le=1000)]


class OwnParts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="parts"):
    """Parts that each device trains and never sends. `start` is the file of their first values."""

    parts: Annotated[tuple[PartName, ...], Meta(min_length=1, max_length=MAX_TASKS + 2)]
    start: Blob
    own_epochs: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Passes over the data that train these parts alone, before the round's others train the rest alone; with 0 all
    are trained together."""


class OwnModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="model"):
    """A model of each device's own: min F(v) + strength/2 · ‖v − w‖², w being the federation's."""

    strength: Strength
    epochs: Epochs
    """Passes over the data for it, before those for the federation's."""


class MoreauModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="moreau"):
    """A model of each device's own, θ ≈ argmin F(θ) + strength/2 · ‖θ − w‖², that the federation's w follows.

    For each batch `steps` steps of rate `lr` on θ, then one of w: w ← w − η · strength · (w − θ), η being the round's
    learning rate.
    """

    strength: Strength
    steps: Annotated[int, Meta(ge=1, le=1000)]
    lr: Annotated[float, Meta(gt=0, le=1e3)]


Personal = OwnParts | OwnModel | MoreauModel


class Held(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parts that are held to a centre c in training: strength/2 · ‖w − c‖² is added to the loss."""

    parts: Annotated[tuple[PartName, ...], Meta(min_length=1, max_length=MAX_TASKS + 2)]
    centre: Blob
    """The file of c."""
    strength: Annotated[float, Meta(gt=0, le=1e12)]


def held_table(table: TensorTable, held: Held) -> TensorTable:
    """Return the table of the centre's file. Raises BundleInvalid for a part that the group does not have."""
    if odd := sorted(set(held.parts) - set(table.parts)):
        raise BundleInvalid(f"the model has no part {odd[0]!r} that is to be held to a centre")
    return table.select(held.parts)


def kept_parts(table: TensorTable, personal: Personal | None) -> tuple[str, ...]:
    """Return the parts of a group's table, and of the state, that a device keeps values of its own for."""
    if personal is None:
        return ()
    if isinstance(personal, OwnParts):
        return tuple(part for part in table.parts if part.removeprefix(STATE) in personal.parts)
    return tuple(table.parts)


def unsent_parts(table: TensorTable, personal: Personal | None) -> tuple[str, ...]:
    """Return the parts of a group's table that are never sent."""
    return kept_parts(table, personal) if isinstance(personal, OwnParts) else ()


def sent_table(table: TensorTable, personal: Personal | None) -> TensorTable:
    """Return the table of the weights that go to and fro. Raises BundleInvalid where nothing would be left."""
    own = unsent_parts(table, personal)
    if not own:
        return table
    if len(own) == len(table.parts):
        raise BundleInvalid("every part of the model is the device's own, so there is nothing to train together")
    return table.select(part for part in table.parts if part not in own)


def passes(epochs: int, personal: Personal | None) -> int:
    """Return the passes over the data that a round of so many epochs takes with what is the device's own."""
    match personal:
        case OwnParts(own_epochs=more) | OwnModel(epochs=more):
            return epochs + more
        case MoreauModel(steps=steps):
            return epochs * steps
        case _:
            return epochs
