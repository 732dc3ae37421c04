import io

import pytest

pytest.importorskip("rich")

from rich.console import Console

from broker_server.server.progress import LiveView, PlainView, losses_text

pytestmark = pytest.mark.workstation


def text_of(screen, loop):
    console = Console(file=io.StringIO(), width=120)
    console.print(screen.render(loop.coordinator, loop))
    return console.file.getvalue()


def test_lines_one_for_each_round(world):
    world = world()
    out = io.StringIO()
    world.watcher = PlainView(out)
    world.boot()
    world.device("x").start()
    world.device("y").start()
    world.until_finished()
    lines = [line for line in out.getvalue().splitlines() if line.startswith("round")]
    assert len(lines) == 10
    assert "test loss 6.0000" in lines[0]
    assert "train loss 3.0000 = a 1.0000" in lines[1]
    assert " J" not in out.getvalue()


def test_lines_say_what_a_round_has_cost(world, make_energy):
    world = world()
    out = io.StringIO()
    world.watcher = PlainView(out)
    world.boot()
    world.device("x", energy=make_energy(joules=5.0, source="model", estimated=True)).start()
    world.device("y").start()
    world.until_finished()
    lines = [line for line in out.getvalue().splitlines() if "train loss" in line]
    assert all(line.endswith("s, ≥ 5.00 J (estimated, 1 of 2 measured))") for line in lines)


def test_screen_at_every_stage(world):
    world = world()
    screen = LiveView(Console(file=io.StringIO()))
    world.watcher = screen
    world.boot()
    console = Console(file=io.StringIO(), width=120)
    console.print(screen.render(world.loop.coordinator, None))
    assert "no bundle yet: no rounds run" in console.file.getvalue()
    assert "waiting for devices" in text_of(screen, world.loop)
    world.device("x").start()
    world.device("y").start()
    world.until(lambda: world.loop.round.number == 1 and world.loop.coordinator.open)
    assert "0 of 2 devices done, training a+b+c" in text_of(screen, world.loop)
    world.until_finished()
    shown = text_of(screen, world.loop)
    assert "all rounds are done" in shown
    assert "split into a + b   c" in shown
    assert "-1.0000" in shown


@pytest.mark.slow
def test_screen_fits_into_a_small_terminal(world):
    world = world(merged_rounds=6)
    screen = LiveView(Console(file=io.StringIO(), width=80, height=24))
    world.watcher = screen
    world.boot()
    for number in range(10):
        world.device(f"device-{number}").start()
    world.until_finished()
    for number in range(4):
        screen.note(f"{number} " + 40 * "a long note ")
    console = Console(file=io.StringIO(), width=80, height=24)
    console.print(screen.render(world.loop.coordinator, world.loop))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) == 80
    shown = "\n".join(lines)
    assert "affinity" in shown
    assert "split into a + b   c" in shown
    assert "4 more" in shown
    assert "end (test)" in shown


def test_losses_text():
    assert losses_text({}) == "not measured"
    assert losses_text({"a": 1.0}) == "a 1.0000"
