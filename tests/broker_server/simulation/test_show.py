import threading

import pytest

pytest.importorskip("rich")

from broker_server.simulation.show import RunBars, RunLines, line

pytestmark = pytest.mark.workstation


def test_line_of_a_run(make_summary):
    assert line("MAS-2 · seed 0", make_summary()) == "MAS-2 · seed 0: test loss 0.2500, 12 CPU s, 1 groups"


def test_line_says_what_was_not_measured(make_summary):
    said = line("x", make_summary(test_loss=None, compute_s=None))
    assert said == "x: test loss not measured, ? CPU s, 1 groups"


def test_lines_has_one_for_each_run_that_has_finished(make_summary, capsys):
    show = RunLines()
    show.begin(2)
    show.step("a", "merged 1/2")
    show.done("a", make_summary())
    assert capsys.readouterr().out == "2 runs\na: test loss 0.2500, 12 CPU s, 1 groups\n"


def test_bars_print_each_run_that_has_finished_from_any_thread(make_summary, capsys):
    with RunBars() as show:
        show.begin(8)

        def work(number):
            show.step(f"run {number}", "merged 1/2")
            show.step(f"run {number}", "merged 2/2")
            show.done(f"run {number}", make_summary())

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    said = capsys.readouterr().err
    assert all(f"run {number}: test loss 0.2500" in said for number in range(8))
    assert "8/8" in said
