"""Checks of a device's answer against the plan that it was sent, before anything is fetched."""

# coverage: every branch

from collections.abc import Mapping

from broker_server.grouping.affinity import check
from edge_runtime.wire.compression import max_bytes
from edge_runtime.wire.linear import MixedEffectPart, answer_bytes
from edge_runtime.wire.messages import Evaluation, Hello, Plan, Update


def update_fault(plan: Plan, update: Update, hello: Hello | None) -> str | None:
    """Return why an announced update cannot count; None if it can. `hello` is the device's own, if it sent one."""
    if fault := _file_fault(plan, update) or _linear_fault(plan, update):
        return fault
    if not any(update.examples.values()):
        return "the update was trained on no examples"
    most, has = max(update.examples.values()), None if hello is None else hello.examples.get("train", 0)
    if has is not None and most > has:  # they are its weight in the mean
        return f"the update was trained on {most} examples, the device has announced {has}"
    if update.affinity is not None:
        try:
            check(update.affinity, plan.tasks)
        except ValueError as exc:
            return str(exc)
    return _foreign_task(plan, update.examples, update.train_loss, update.val_loss or {})


def _file_fault(plan: Plan, update: Update) -> str | None:
    announced, full = update.weights.size_bytes, plan.weights.size_bytes
    if isinstance(plan.linear, MixedEffectPart):
        most = answer_bytes(full)
        return (
            f"statistics of {announced} bytes were announced, at most {most} are possible" if announced > most else None
        )
    if update.scheme == "fp32" and announced != full:
        return f"weights of {announced} bytes were announced, those of the group have {full}"
    if announced > max_bytes(full):
        return f"a {update.scheme} update of {announced} bytes was announced, at most {max_bytes(full)} are possible"
    if update.base not in {None, plan.weights.digest}:
        return "the update is a change to other weights than those of the round"
    return None


def _linear_fault(plan: Plan, update: Update) -> str | None:
    if plan.linear is None:
        return None
    if update.linear is None or update.scheme != "fp32":
        return "the update of a linear model says nothing of its part, or is no vector in full"
    if update.examples.keys() != set(plan.tasks) or update.train_loss.keys() != set(plan.tasks):
        return "the update of a linear model has another task than the plan"
    return None


def evaluation_fault(plan: Plan, evaluation: Evaluation) -> str | None:
    """Return why an evaluation cannot count; None if it can."""
    return _foreign_task(plan, evaluation.loss, evaluation.examples, evaluation.metrics or {})


def _foreign_task(plan: Plan, *by_task: Mapping[str, object]) -> str | None:
    odd = sorted({task for values in by_task for task in values} - set(plan.tasks))
    return f"task {odd[0]!r} is not one of the group" if odd else None
