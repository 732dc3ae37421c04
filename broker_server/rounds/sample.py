"""Which devices a round is drawn from, and the sample of them: a function of the seed and of what was drawn before."""

# coverage: every branch

import random
from collections.abc import Mapping, Sequence

from broker_server.rounds.round_state import OpenRound
from edge_runtime.wire.messages import Hello


def able(current: OpenRound, hellos: Mapping[str, Hello]) -> list[str]:
    """Return the devices that can train or measure the round's group, in order.

    They have labels of one of its tasks, and do without training artifacts where it has none. To measure, return all
    where nobody has labels.
    """
    found = [name for name, hello in hellos.items() if _is_able(hello, current)]
    return found if found or current.plan.work == "train" else list(hellos)


def sample(seed: int, current: OpenRound, names: Sequence[str], number: int) -> list[str]:
    """Draw by the seed, the group's round and what it has drawn before; the same with every strategy."""
    token = f"{seed}/{current.round.group}/{current.round.index}/{sorted(current.members)}"
    return sorted(random.Random(token).sample(names, max(0, min(number, len(names)))))  # noqa: S311


def _is_able(hello: Hello, current: OpenRound) -> bool:
    if current.is_portable and hello.ort_training == "require":
        return False
    return not set(current.plan.tasks).isdisjoint(hello.tasks)
