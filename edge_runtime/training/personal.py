"""The runs of training that a round is made of: one, unless a device has something of its own.

for all alike   from the received weights
OwnParts        with the device's own parts in their place; own parts first and the rest after, where asked for
OwnModel        the device's model, held to the received weights; then the federation's from these (Ditto)
MoreauModel     both in one run (pFedMe)
"""

# coverage: every branch

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import msgspec

from edge_runtime.training.moreau import MoreauSgd
from edge_runtime.training.optimizer import Optimizer, Ranges, make_optimizer
from edge_runtime.wire.messages import Training
from edge_runtime.wire.personal import Held, MoreauModel, OwnModel, OwnParts, Personal, passes
from edge_runtime.wire.tensors import Vector


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """One run of training: from which weights (D,), how, and what its result is for."""

    start: Vector
    settings: Training
    optimizer: Optimizer
    received: Vector
    """What a proximal term holds the parameters to, (D,)."""
    held: Ranges | None = None
    """The ranges that it holds; None for all."""
    steps: int = 1
    """On each batch."""
    trained: tuple[Ranges, ...] | None = None
    """The ranges that are stepped in each epoch; None for all."""
    name: str = ""
    """Of what it leaves on the device; empty for the run whose weights are sent."""
    keeps: bool = False
    """True if its weights are the device's own, and stay."""
    carries: bool = True
    """True if the optimizer's state goes on in the next round."""

    def sent(self, weights: Vector, state: Vector) -> Vector:
        """Return the weights (D,) to be sent, of those that it ended with and the optimizer's state."""
        if not isinstance(self.optimizer, MoreauSgd):
            return weights
        new = weights.copy()
        new[: len(state) - 1] = state[:-1]
        return new


def optimizer_of(settings: Training, personal: Personal | None) -> Optimizer:
    """Return the optimizer of the run whose weights are sent."""
    if isinstance(personal, MoreauModel):
        return MoreauSgd(
            lr=personal.lr,
            weight_decay=settings.weight_decay,
            strength=personal.strength,
            steps=personal.steps,
            rate=settings.lr,
        )
    return make_optimizer(settings)


def runs(
    personal: Personal | None,
    settings: Training,
    *,
    received: Vector,
    own: Vector,
    ranges: Callable[[Collection[str]], Ranges],
    parts: Sequence[str],
) -> tuple[TrainingRun, ...]:
    """Return a round's runs; the last one's weights are sent.

    `received` (D,) are the weights that the server sent, `own` (D,) the same with what the device keeps in its place.
    `ranges` gives the ranges of some of all `parts` in a vector.
    """
    optimizer = optimizer_of(settings, personal)
    match personal:
        case OwnParts(parts=mine, own_epochs=first) if first:
            whole = _lasting(settings, passes(settings.epochs, personal))
            rest = ranges([part for part in parts if part not in mine])
            trained = (ranges(mine),) * first + (rest,) * settings.epochs
            return (
                TrainingRun(start=own, settings=whole, optimizer=optimizer, received=own, trained=trained, keeps=True),
            )
        case OwnModel():
            held = msgspec.structs.replace(
                _lasting(settings, personal.epochs), proximal_mu=personal.strength, probe_every=0
            )
            return (
                TrainingRun(start=own, settings=held, optimizer=optimizer, received=received, name="-own", keeps=True),
                TrainingRun(start=received, settings=settings, optimizer=optimizer, received=received),
            )
        case MoreauModel():
            return (
                TrainingRun(
                    start=received,
                    settings=settings,
                    optimizer=optimizer,
                    received=received,
                    steps=personal.steps,
                    keeps=True,
                    carries=False,
                ),
            )
        case _:
            return (
                TrainingRun(
                    start=own, settings=settings, optimizer=optimizer, received=own, keeps=personal is not None
                ),
            )


def pulled(run: TrainingRun, held: Held, centre: Vector, ranges: Callable[[Collection[str]], Ranges]) -> TrainingRun:
    """Return the run with some parts held to a `centre` (D,), in place of its own proximal term."""
    settings = msgspec.structs.replace(run.settings, proximal_mu=held.strength)
    return replace(run, settings=settings, received=centre, held=ranges(held.parts))


def _lasting(settings: Training, epochs: int) -> Training:
    """Return the settings with another number of epochs in each round."""
    return msgspec.structs.replace(
        settings, epochs=epochs, first_epoch=settings.first_epoch // settings.epochs * epochs
    )
