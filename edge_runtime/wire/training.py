"""How weights are stepped and losses weighted: bounds and defaults of training, stated once.

The table [training] of server.toml, the flags of `python -m edge_runtime train` and what a plan asks of a device (see
messages.Training) are these.
"""

# coverage: every branch

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge_runtime.wire.names import MAX_TASKS, TaskName

COMMON: dict[str, Any] = {"common": True}
"""Of a setting that the short help shows."""
ProbeMethod = Literal["exact", "encoder", "representation"]
"""Affinities by look-ahead, or to first order from the encoder's or the representation's gradients."""
GradientCombination = Literal["sum", "mean", "pcgrad", "cagrad"]
"""Tasks' gradients are added or averaged, conflicting parts are projected out first, or the worst off is helped."""
CAGradRadius = Annotated[float, Meta(ge=0, lt=1)]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
Rate = Annotated[float, Meta(gt=0, le=10)]
Alpha = Annotated[float, Meta(ge=0, le=10)]
TaskWeights = Annotated[dict[TaskName, Weight], Meta(max_length=MAX_TASKS)]
GRADNORM_ALPHA, WEIGHTING_LR = 1.5, 0.025


class FixedWeighting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="fixed"):
    """The weight of each task's loss; 1 for a task that is not named."""

    weights: TaskWeights = {}


class GradNormWeighting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gradnorm"):
    """Weights that GradNorm learns."""

    alpha: Alpha = GRADNORM_ALPHA
    lr: Rate = WEIGHTING_LR


class UncertaintyWeighting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="uncertainty"):
    """Weights by learned uncertainty."""

    lr: Rate = WEIGHTING_LR


TaskWeighting = FixedWeighting | GradNormWeighting | UncertaintyWeighting


class Optimization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a device steps along its gradients, and how its samples are varied."""

    batch: Annotated[int, Meta(ge=1, le=65536, description="samples in a step", extra=COMMON)] = 16
    lr: Annotated[float, Meta(gt=0, le=1e3, description="learning rate of the first epoch", extra=COMMON)] = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1, description="momentum; with adamw its beta1")] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, le=1, description="weight decay")] = 1e-4
    optimizer: Annotated[Literal["sgd", "adamw"], Meta(description="the optimizer", extra=COMMON)] = "sgd"
    beta2: Annotated[float, Meta(ge=0, lt=1, description="beta2 of adamw")] = 0.999
    epsilon: Annotated[float, Meta(gt=0, le=1, description="epsilon of adamw")] = 1e-8
    clip_norm: Annotated[float, Meta(ge=0, le=1e9, description="largest Euclidean norm of a gradient; 0 for any")] = 0.0
    proximal_mu: Annotated[float, Meta(ge=0, le=1e3, description="FedProx's mu: adds mu · (w − w_received)")] = 0.0
    gradient_combination: Annotated[
        GradientCombination, Meta(description="how the tasks' gradients at the representation are combined")
    ] = "sum"
    cagrad_c: Annotated[
        CAGradRadius, Meta(description="with cagrad: how far it may go from the mean, in parts of its length")
    ] = 0.4
    flip: Annotated[
        float, Meta(ge=0, le=1, description="share of samples that are mirrored left to right with their dense labels")
    ] = 0.0
    crop: Annotated[
        int, Meta(ge=0, le=4096, description="most pixels that samples and dense labels are moved by, edges repeated")
    ] = 0
    jitter: Annotated[float, Meta(ge=0, lt=1, description="images times 1 ± this, and ± this; labels stay")] = 0.0


class TrainingSettings(Optimization, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How devices train: what a person decides. A round adds what depends on it."""

    epochs: Annotated[int, Meta(ge=1, le=1000, description="passes over the data, in a round", extra=COMMON)] = 1
    weighting: Annotated[
        Literal["fixed", "gradnorm", "uncertainty"], Meta(description="how the tasks' losses are weighted")
    ] = "fixed"
    task_weights: Annotated[TaskWeights, Meta(description="with fixed: weights by task; 1 if not named")] = {}
    gradnorm_alpha: Annotated[Alpha, Meta(description="with gradnorm: its alpha")] = GRADNORM_ALPHA
    weighting_lr: Annotated[Rate, Meta(description="learning rate of the weights that are learned")] = WEIGHTING_LR

    @property
    def task_weighting(self) -> TaskWeighting | None:
        """How much each task's loss counts; None for the plain sum."""
        if self.weighting == "gradnorm":
            return GradNormWeighting(alpha=self.gradnorm_alpha, lr=self.weighting_lr)
        if self.weighting == "uncertainty":
            return UncertaintyWeighting(lr=self.weighting_lr)
        return FixedWeighting(weights=self.task_weights) if self.task_weights else None

    @property
    def optimization(self) -> dict[str, Any]:
        """The fields that it has in common with what a round asks for."""
        return {name: getattr(self, name) for name in Optimization.__struct_fields__}
