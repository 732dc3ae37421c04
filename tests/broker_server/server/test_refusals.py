from broker_server.server.refusals import MOST, OTHERS, Refusals


def said(refusals, now_s):
    return [line.text for line in refusals.lines(now_s)]


def test_refusal_is_said_at_once_and_then_counted():
    refusals = Refusals()
    refusals.add("pi", "its token has expired", 0.0)
    assert said(refusals, 0.0) == ["refused pi: its token has expired"]
    for second in range(1, 60):
        refusals.add("pi", "its token has expired", float(second))
        assert said(refusals, float(second)) == []
    assert said(refusals, 61.0) == ["refused pi: its token has expired (59 times more in 1 min)"]
    refusals.add("pi", "its token has expired", 62.0)
    assert said(refusals, 121.5) == [], "the second count takes twice as long"
    assert said(refusals, 182.0) == ["refused pi: its token has expired (once more in 2 min)"]


def test_refusal_is_counted_once_an_hour_at_the_least():
    refusals, lines = Refusals(), []
    for minute in range(24 * 60):
        refusals.add("pi", "no token", 60.0 * minute)
        lines += refusals.lines(60.0 * minute)
    assert 24 < len(lines) < 35
    assert sum(line.count for line in lines) > 23 * 60
    assert lines[-1].in_s == 3600.0


def test_refusal_that_is_over_is_forgotten_and_said_anew():
    refusals = Refusals()
    refusals.add("pi", "no token", 0.0)
    assert len(said(refusals, 0.0)) == 1
    assert refusals.of("pi") == "refused: no token"
    assert said(refusals, 121.0) == []
    assert refusals.of("pi") == ""
    refusals.add("pi", "no token", 122.0)
    assert said(refusals, 122.0) == ["refused pi: no token"]


def test_refusals_of_one_who_is_let_in_are_over():
    refusals = Refusals()
    refusals.add("pi", "no token", 0.0, 3)
    refusals.add("pi", "another federation", 0.0)
    refusals.add("pi-2", "no token", 0.0)
    assert len(said(refusals, 0.0)) == 3
    assert refusals.of("pi") == "refused: no token (3 times); refused: another federation"
    refusals.end("pi")
    assert refusals.of("pi") == ""
    assert refusals.of("pi-2") == "refused: no token"
    refusals.add("pi", "no token", 1.0)
    assert refusals.of("pi") == "refused: no token"


def test_refusals_between_logins_that_succeed_are_counted_and_not_said_anew():
    refusals, lines = Refusals(), []
    for second in range(120):
        refusals.end("pi")
        refusals.add("pi", "a message is older than what came before", float(second))
        lines += said(refusals, float(second))
    assert lines == [
        "refused pi: a message is older than what came before",
        "refused pi: a message is older than what came before (60 times more in 1 min)",
    ]


def test_refusals_under_made_up_names_fill_nothing():
    refusals, lines = Refusals(), []
    for number in range(100_000):
        refusals.add(f"stranger {number}", "no token", number / 1000)
        if number % 100 == 0:
            lines += refusals.lines(number / 1000)
    lines += refusals.lines(1000.0)
    assert len(lines) < 40
    assert sum(line.count for line in lines) == 100_000
    assert (lines[-1].who, lines[-1].why) == OTHERS


def test_refusals_are_told_apart_up_to_a_number():
    refusals = Refusals()
    for number in range(2 * MOST):
        refusals.add(f"stranger {number}", "no token", 30.0 * number)
    assert len(refusals.lines(1.0)) == MOST + 1


def test_refusal_is_one_line_whatever_is_said():
    refusals = Refusals()
    refusals.add("a\nb\x1b[2J", "c\nd" + "e" * 10_000, 0.0)
    (line,) = said(refusals, 0.0)
    assert line.isprintable()
    assert len(line) < 700
