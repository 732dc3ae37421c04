from hypothesis import given
from hypothesis import strategies as st

from broker_server.simulation.timeline import Timeline


@given(st.lists(st.floats(0, 100), max_size=20))
def test_events_happen_in_the_order_of_their_times_and_of_asking(times):
    timeline, happened = Timeline(), []
    for number, time_s in enumerate(times):
        timeline.at(time_s, lambda number=number: happened.append((timeline.now_s, number)))
    while timeline.step():
        pass
    assert happened == sorted((time_s, number) for number, time_s in enumerate(times))


def test_what_lies_in_the_past_happens_now():
    timeline, happened = Timeline(5.0), []
    timeline.at(1.0, lambda: happened.append(timeline.clock()))
    timeline.after(2.0, lambda: happened.append(timeline.clock()))
    timeline.pass_by(3.0)
    while timeline.step():
        pass
    assert happened == [8.0, 8.0]


def test_an_event_may_ask_for_others():
    timeline, happened = Timeline(), []

    def tick():
        happened.append(timeline.now_s)
        if len(happened) < 3:
            timeline.after(1.0, tick)

    timeline.after(1.0, tick)
    while timeline.step():
        pass
    assert happened == [1.0, 2.0, 3.0]
    assert not timeline.step()
