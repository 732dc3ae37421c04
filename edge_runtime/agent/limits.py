"""The device's own limits: what it does for no server, whoever has signed the plan."""

# coverage: every branch

from dataclasses import dataclass

from edge_runtime.wire.messages import Plan


@dataclass(frozen=True, kw_only=True)
class PlanLimits:
    """What a plan may ask for: None is any number, and no tasks are all.

    Bytes and memory are limited where they are used: downloads.py, and the worker's memory plan.
    """

    split_learning: bool = False
    epochs: int | None = None
    work_s: float | None = None
    """The longest that the work on one plan may take."""
    tasks: tuple[str, ...] = ()

    def fault(self, plan: Plan) -> str | None:
        """Return why the device declines a plan; None if it does not."""
        if plan.split_learning is not None and not self.split_learning:
            return "split learning would send what the stem makes of this device's data (split_learning in agent.toml)"
        if self.epochs is not None and plan.training is not None and plan.training.epochs > self.epochs:
            return f"{plan.training.epochs} epochs are asked for, this device trains {self.epochs} (max_epochs)"
        others = sorted(set(plan.tasks) - set(self.tasks)) if self.tasks else []
        if others:
            return f"this device works for {', '.join(self.tasks)}, not for {', '.join(others)} (tasks)"
        return None


NO_LIMITS = PlanLimits(split_learning=True)
