import argparse

import pytest

from devices.cli.settings import ConfigInvalid

pytest.importorskip("rich")

from broker_server.simulation import command

pytestmark = pytest.mark.workstation
TEXT = 'data = "d"\nbundle = "b"\nseeds = [0, 1]\n[methods.MAS]\n[methods.TAG]\n'


def arguments(tmp_path, *flags):
    path = tmp_path / "experiment.toml"
    path.write_text(TEXT)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(path), "--out", str(tmp_path / "out"), *flags])


def test_run_refuses_methods_that_the_experiment_does_not_have_before_anything_is_begun(tmp_path):
    with pytest.raises(ConfigInvalid, match="the experiment has no 'HOA'; it has MAS, TAG"):
        command.run(arguments(tmp_path, "--methods", "TAG, HOA"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [("--seeds", "one"), ("--workers", "many")])
def test_arguments_that_are_no_numbers_are_wrong_usage(tmp_path, flags, capsys):
    with pytest.raises(SystemExit) as raised:
        arguments(tmp_path, *flags)
    assert raised.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_arguments_are_lists_of_names_and_numbers(tmp_path):
    found = arguments(tmp_path, "--methods", "a, b", "--seeds", "3,1", "--devices", "attic")
    assert (found.methods, found.seeds, found.devices) == (("a", "b"), (3, 1), ("attic",))
