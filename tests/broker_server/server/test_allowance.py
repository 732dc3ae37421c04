from broker_server.server.allowance import Allowance


def test_allowance_is_spent_and_comes_back_for_each_name():
    allowance = Allowance(burst=2, per_s=0.5)
    assert [allowance.take("x", 0.0) for _ in range(3)] == [True, True, False]
    assert allowance.take("y", 0.0)
    assert not allowance.take("x", 1.0)
    assert allowance.take("x", 2.0)
    assert [allowance.take("x", 1000.0) for _ in range(3)] == [True, True, False]
