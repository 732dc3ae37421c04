from edge_runtime.wire import errors
from edge_runtime.wire.errors import MAX_REASON, WireError, reason


def test_every_exception_of_the_module_is_a_wire_error():
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    assert WireError in kinds
    assert all(issubclass(kind, WireError) for kind in kinds)


def test_reason_is_short_and_on_one_line():
    assert reason("a\nb\x1b[31m") == "a b?[31m"
    assert len(reason("x" * 10_000)) == MAX_REASON
