"""What a device's answer may say: checked against the work that it was given, before anything is fetched."""

# coverage: every branch

from collections.abc import Mapping

from broker_server.grouping.affinity import check
from broker_server.rounds.actions import Work
from edge_runtime.wire.compression import max_bytes
from edge_runtime.wire.messages import Evaluation, Hello, Update


def update_fault(work: Work, update: Update, hello: Hello | None) -> str | None:
    """Why an announced update cannot count; None if it can. `hello` is what the device said it has, if it did."""
    if fault := _file_fault(work, update):
        return fault
    if not any(update.examples.values()):
        return "the update was trained on no examples"
    most, has = max(update.examples.values()), None if hello is None else hello.examples.get("train", 0)
    if has is not None and most > has:  # they are its weight in the mean
        return f"the update was trained on {most} examples, the device said that it has {has}"
    if update.affinity is not None:
        try:
            check(update.affinity, work.assignment.tasks)
        except ValueError as exc:
            return str(exc)
    return _foreign_task(work, update.examples, update.train_loss, update.val_loss or {})


def _file_fault(work: Work, update: Update) -> str | None:
    announced, full = update.weights.size_bytes, work.weights.size_bytes
    if update.scheme == "fp32" and announced != full:
        return f"weights of {announced} bytes were announced, those of the group have {full}"
    if announced > max_bytes(full):
        return f"a {update.scheme} update of {announced} bytes was announced, at most {max_bytes(full)} are possible"
    if update.base not in {None, work.weights.digest}:
        return "the update is a change to other weights than those of the round"
    return None


def evaluation_fault(work: Work, evaluation: Evaluation) -> str | None:
    """Why an evaluation cannot count; None if it can."""
    return _foreign_task(work, evaluation.loss, evaluation.examples, evaluation.metrics or {})


def _foreign_task(work: Work, *by_task: Mapping[str, object]) -> str | None:
    odd = sorted({task for values in by_task for task in values} - set(work.assignment.tasks))
    return f"task {odd[0]!r} is not one of the group" if odd else None
