"""Which devices a round is drawn from, and the sample of them: a function of the seed and of what was drawn before."""

# coverage: every branch

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker_server.rounds.actions import Opened
from broker_server.rounds.answer_times import AnswerTimes
from broker_server.rounds.presence import Presence
from broker_server.rounds.round_state import OpenRound
from broker_server.rounds.rules import Rules
from edge_runtime.wire.messages import Hello


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Draws devices for rounds, and takes them in as members."""

    seed: int
    rules: Rules
    presence: Presence
    answer_times: AnswerTimes

    def free(self, current: OpenRound) -> list[str]:
        """Draw devices that are free, so many that as many as are wanted are at work."""
        free = [name for name in able(current, self.presence.hellos) if current.is_free(name)]
        number = self.rules.at_work(current.plan.work) or len(free) + len(current.unanswered)
        return sample(self.seed, current, free, number - len(current.unanswered))

    def others(self, current: OpenRound, number: int) -> list[str]:
        """Draw devices that were not asked yet."""
        fresh = [name for name in able(current, self.presence.hellos) if name not in current.members]
        return sample(self.seed, current, fresh, number)

    def take_in(self, current: OpenRound, drawn: Sequence[str], now_s: float) -> Opened:
        """Take drawn devices in as members, which are asked now; return what is to be journalled of the round."""
        is_buffered = self.rules.is_buffered(current.plan.work)
        factor = self.rules.work_factor if is_buffered else 0.0
        asked = {name: self.answer_times.share(name, factor) for name in drawn}
        current.draw(asked, now_s)
        members = tuple(sorted(current.members))
        return Opened(round=current.round, members=members, quorum=current.quorum, asked=asked if is_buffered else {})


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
