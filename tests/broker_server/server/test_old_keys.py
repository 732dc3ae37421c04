import argparse
import logging

import pytest

from broker_server.server.config import SETTINGS
from broker_server.server.old_keys import RENAMED, add_old_flags, renewed
from devices.cli.settings import of_flags


def test_flat_keys_find_their_tables(caplog):
    old = {"federation": "lab", "merged_rounds": 3, "round_deadline_s": 9.0, "lr": 0.5, "host": "h", "server_lr": 0.1}
    assert renewed("s.toml", old, SETTINGS) == {
        "federation": "lab",
        "grouping": {"merged_rounds": 3},
        "rounds": {"deadline_s": 9.0},
        "training": {"lr": 0.5},
        "broker": {"host": "h"},
        "aggregation": {"optimizer": {"lr": 0.1}},
    }
    assert len(caplog.records) == 5
    assert "s.toml: merged_rounds is called grouping.merged_rounds" in caplog.text


def test_keys_and_words_that_have_changed():
    old = {"stems": "own", "choice": "worth", "general": "host", "official_limit_s": 3.0, "update_scheme": "int8"}
    assert renewed("s.toml", old, SETTINGS) == {
        "local_stems": True,
        "grouping": {"method": "training_cost"},
        "split_learning": {"encoder": "server"},
        "ort_training": {"limit_s": 3.0},
        "updates": {"scheme": "int8"},
    }
    assert renewed("s.toml", {"stems": "shared", "choice": "best"}, SETTINGS)["local_stems"] is False


def test_keys_that_stood_in_the_table_of_training():
    old = {"lr": 0.1, "training": {"probe": "encoder", "merging": "cagrad", "cagrad_c": 0.2}, "aggregation": "cagrad"}
    assert renewed("s.toml", old, SETTINGS) == {
        "grouping": {"probe": "encoder"},
        "training": {"lr": 0.1, "gradient_combination": "cagrad", "cagrad_c": 0.2},
        "aggregation": {"rule": "cagrad", "cagrad_c": 0.2},
    }


def test_tables_of_today_stay_as_they_are(caplog):
    today = {"seed": 1, "training": {"lr": 0.1}, "aggregation": {"rule": "mean"}, "wings": 2, "grouping": 3}
    assert renewed("s.toml", today, SETTINGS) == today
    assert not caplog.records


def test_a_flat_key_joins_the_table_that_follows():
    assert renewed("s.toml", {"server_lr": 0.1, "aggregation": {"rule": "mean"}}, SETTINGS) == {
        "aggregation": {"optimizer": {"lr": 0.1}, "rule": "mean"}
    }


def test_every_renamed_key_has_a_setting():
    assert set(RENAMED.values()) <= {each.key for each in SETTINGS}


def test_flags_of_before_are_taken(caplog, capsys):
    parser = argparse.ArgumentParser()
    add_old_flags(parser, SETTINGS)
    assert "--merging" not in parser.format_help()
    options = parser.parse_args(["--merging", "pcgrad", "--stems", "own", "--general-parts", "2"])
    assert of_flags(options, SETTINGS) == {
        "training": {"gradient_combination": "pcgrad"},
        "local_stems": True,
        "split_learning": {"parts": 2},
    }
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert "--merging is called --gradient-combination" in caplog.text
    with pytest.raises(SystemExit):
        parser.parse_args(["--general-parts", "0"])
    assert "argument --general-parts: '0' is not a whole number, 1 to 64" in capsys.readouterr().err
