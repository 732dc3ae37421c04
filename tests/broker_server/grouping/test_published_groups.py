"""What choosers come to on published losses of all groups of five Taskonomy tasks: three settings, 2 to 4 groups each.

The sources are in the fixtures. Regret is the test loss beyond that of the best division into as many groups.
"""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from broker_server.grouping import pairs
from broker_server.grouping.quality import known_divisions, ordered, quality
from broker_server.grouping.search import search

FIXTURES = Path(__file__).parents[2] / "fixtures"


class Published(msgspec.Struct, frozen=True):
    source: str
    tasks: tuple[str, ...]
    settings: dict[str, dict[str, dict[str, list[float]]]]


PUBLISHED = msgspec.json.decode((FIXTURES / "published_groups.json").read_bytes(), type=Published)
AFFINITIES = msgspec.json.decode((FIXTURES / "split_golden.json").read_bytes())["values"]
TASKS = PUBLISHED.tasks


def losses(setting, split):
    rows = PUBLISHED.settings[setting][split].items()
    return {tuple(group): dict(zip(group, values, strict=True)) for group, values in rows}


def by_affinity(_validation, groups):
    return search(TASKS, AFFINITIES, groups, "exactly").groups


def by_pairs(validation, groups):
    singles = {task: validation[(task,)][task] for task in TASKS}
    measured = {group: tuple(found.values()) for group, found in validation.items() if len(group) == 2}
    return pairs.choose(TASKS, singles, measured, groups, "exactly").groups


def by_every_group(validation, groups):
    known = known_divisions(validation, TASKS, groups)
    return min(known, key=known.__getitem__)


def qualities(choose):
    return [
        quality(known_divisions(losses(setting, "test"), TASKS, groups), ordered(choose(validation, groups)), {})
        for setting in PUBLISHED.settings
        for validation in [losses(setting, "validation")]
        for groups in (2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("choose", "regret", "gain"),
    [(by_affinity, 0.0371, 0.268), (by_pairs, 0.0074, 0.656), (by_every_group, 0.0006, 0.953)],
)
def test_choosers_on_published_losses(choose, regret, gain):
    found = qualities(choose)
    assert np.mean([each.regret for each in found]) == pytest.approx(regret, abs=5e-5)
    assert np.mean([each.gain for each in found]) == pytest.approx(gain, abs=5e-4)


def test_random_and_worst_choices_on_published_losses():
    found = qualities(by_pairs)
    assert np.mean([each.random / each.best - 1 for each in found]) == pytest.approx(0.0515, abs=5e-5)
    assert np.mean([each.worst / each.best - 1 for each in found]) == pytest.approx(0.0963, abs=5e-5)
