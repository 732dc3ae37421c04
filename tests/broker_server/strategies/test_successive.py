import pytest

from broker_server.grouping.search import SplitImpossible
from broker_server.strategies.successive import Successive


def test_tasks_join_one_after_another_and_the_encoder_is_held(measured, walk):
    strategy = Successive(("a", "b", "c"), order=("c", "a", "b"), rounds=3, hold=0.1)
    first, second, third, end = walk(strategy, measured())
    assert [phase.groups for phase in (first, second, third)] == [(("c",),), (("a", "c"),), (("a", "b", "c"),)]
    assert [(phase.start, phase.sources, phase.hold) for phase in (first, second, third)] == [
        (None, None, 0.0),
        (first.name, first.groups, 0.1),
        (second.name, second.groups, 0.1),
    ]
    assert {phase.rounds for phase in (first, second, third)} == {3}
    assert (end.groups, end.start, end.data_split) == ((("a", "b", "c"),), third.name, "test")
    assert not strategy.may_end(first, measured())


def test_tasks_join_by_name_where_no_order_is_given(measured, walk):
    first, *_ = walk(Successive(("b", "a"), order=(), rounds=1, hold=0.0), measured())
    assert first.groups == (("a",),)


@pytest.mark.parametrize("order", [("a",), ("a", "b", "b"), ("a", "z")])
def test_an_order_that_is_not_of_the_tasks_is_refused(order):
    with pytest.raises(SplitImpossible, match="order"):
        Successive(("a", "b"), order=order, rounds=1, hold=0.1)
