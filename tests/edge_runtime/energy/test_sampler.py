import threading

from edge_runtime.energy.sampler import Sampler


def test_sampler_ticks_until_it_is_stopped():
    ticks = threading.Semaphore(0)
    sampler = Sampler(ticks.release, 200.0)
    sampler.start()
    for _ in range(5):
        assert ticks.acquire(timeout=60)
    sampler.stop()
    while ticks.acquire(blocking=False):
        pass
    assert not ticks.acquire(timeout=0.1)


def test_sampler_does_not_catch_up_after_a_slow_tick():
    """While a tick waits, none are saved up: the thread is in it, and the next is due a period later."""
    begun, release, count = threading.Event(), threading.Event(), []

    def tick():
        count.append(1)
        begun.set()
        release.wait(60)

    sampler = Sampler(tick, 100.0)
    sampler.start()
    assert begun.wait(60)
    threading.Event().wait(0.2)
    assert len(count) == 1
    sampler._stop.set()
    release.set()
    sampler.stop()
    assert len(count) <= 2


def test_slow_sampler_stops_at_once():
    sampler = Sampler(lambda: None, 0.001)
    sampler.start()
    sampler.stop()


def test_sampler_that_never_ran_stops():
    Sampler(lambda: None, 1.0).stop()
