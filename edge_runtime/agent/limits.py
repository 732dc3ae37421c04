"""The device's own limits: what it does for no server, whoever has signed the plan."""

# coverage: every branch

from dataclasses import dataclass

from edge_runtime.wire.manifest import Manifest
from edge_runtime.wire.messages import Plan
from edge_runtime.wire.reconstruction import fault as reconstruction_fault


@dataclass(frozen=True, kw_only=True)
class PlanLimits:
    """What a plan may ask for: None is any number, and no tasks are all.

    Bytes and memory are limited where they are used: downloads.py, and the worker's memory plan.
    """

    split_learning: bool = False
    reconstruction: bool = False
    """Whether split learning may send what inputs can be made of again."""
    epochs: int | None = None
    work_s: float | None = None
    """The longest that the work on one plan may take."""
    tasks: tuple[str, ...] = ()

    def fault(self, plan: Plan) -> str | None:
        """Return why the device declines a plan; None if it does not."""
        if plan.split_learning is not None and not self.split_learning:
            return "split learning would send what the stem makes of this device's data (split_learning in agent.toml)"
        if self.epochs is not None and plan.passes > self.epochs:
            return f"{plan.passes:g} epochs are asked for, this device trains {self.epochs} (max_epochs)"
        others = sorted(set(plan.tasks) - set(self.tasks)) if self.tasks else []
        if others:
            return f"this device works for {', '.join(self.tasks)}, not for {', '.join(others)} (tasks)"
        return None

    def manifest_fault(self, plan: Plan, manifest: Manifest) -> str | None:
        """Return why the device declines a plan for what its manifest says; None if it does not."""
        if plan.split_learning is None or self.reconstruction:
            return None
        found = reconstruction_fault(manifest.reconstruction, plan.split_learning)
        return found and f"{found}: this device sends no such embeddings (allow_reconstruction in agent.toml)"


NO_LIMITS = PlanLimits(split_learning=True, reconstruction=True)
