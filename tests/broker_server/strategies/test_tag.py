import numpy as np
import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.tag import Tag

TASKS = ("a", "b", "c")


def test_tag_trains_overlapping_groups_from_scratch(measured, walk):
    helps = np.array([[0, 5.0, 3.0], [5.0, 0, -9.0], [0, -9.0, 0]])  # a helps both, b and c harm one another
    found = measured(values=helps)
    merge, groups, end = walk(Tag(TASKS, rounds=4, groups=2, probe_rounds=4), found)
    assert (merge.rounds, merge.probe_rounds, merge.groups) == (4, 4, (TASKS,))
    assert (groups.groups, groups.start, groups.rounds) == ((("a", "b"), ("a", "c")), None, 4)
    assert groups.split.mode == "overlap"
    assert (end.groups, end.sources) == ((("a", "b"), ("c",)), (("a", "b"), ("a", "c")))


def test_tag_needs_groups_and_affinities(measured, walk):
    with pytest.raises(SplitImpossible, match="two at least"):
        Tag(TASKS, rounds=1, groups=1, probe_rounds=1)
    with pytest.raises(SplitImpossible, match="no device measured"):
        walk(Tag(TASKS, rounds=1, groups=2, probe_rounds=1), measured(counts=0))
