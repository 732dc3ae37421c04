import pytest

from edge_runtime.wire.counter import AHEAD, Counter


def test_counter_grows_over_restarts_and_a_clock_that_goes_back(tmp_path):
    path, now = tmp_path / "counter", [1000]
    counter = Counter(path, lambda: now[0])
    numbers = [counter.next() for _ in range(3)]
    assert numbers == [1000, 1001, 1002]
    now[0] = 5
    numbers += [counter.next(), Counter(path, lambda: now[0]).next(), Counter(path, lambda: now[0]).next()]
    assert numbers == sorted(set(numbers))
    now[0] = 10 * AHEAD
    assert Counter(path, lambda: now[0]).next() == 10 * AHEAD


def test_counter_writes_its_file_once_a_minute_and_not_with_each_number(tmp_path):
    path, now = tmp_path / "counter", [0]
    counter, written = Counter(path, lambda: now[0]), set()
    for _ in range(1000):
        now[0] += AHEAD // 100
        counter.next()
        written.add(path.read_text())
    assert 9 <= len(written) <= 11


@pytest.mark.parametrize("text", [b"", b"x", b"-5", b"9" * 40, b"\xff\xfe"])
def test_counter_whose_file_is_no_number_begins_with_the_clock(tmp_path, text):
    (tmp_path / "counter").write_bytes(text)
    assert Counter(tmp_path / "counter", lambda: 77).next() == 77
