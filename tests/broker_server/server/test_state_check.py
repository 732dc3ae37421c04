import shutil

import pytest

from broker_server.__main__ import main
from broker_server.rounds.journal import FederationJournal, JournalInvalid
from broker_server.server.enrolments import Enrolments
from broker_server.server.state import StateFolder
from broker_server.server.state_check import BackupImpossible, backup, problems
from devices.cli.run import BAD_INPUT, DONE
from edge_runtime.wire.messages import Update


@pytest.fixture
def open_round(world):
    """A world in its first round of training, with x's update and without y's."""
    world = world(min_devices=2)
    x, y = world.device("x"), world.device("y")
    x.start()
    y.start()
    world.until(lambda: world.loop.round.number == 1)
    y.silent = True
    world.until(lambda: "x" in world.journal.results(1))
    world.config.state.chmod(0o700)
    return world


def found(world, *, repair=False):
    folder = StateFolder(world.config.state)
    try:
        return problems(folder, repair=repair)
    finally:
        folder.close()


def test_check_finds_nothing_in_a_folder_that_is_whole(open_round):
    assert found(open_round) == []


def test_check_names_what_is_damaged_and_repairs_what_can_be(open_round):
    world = open_round
    weights = world.journal.weights()["merge", "a+b+c"]
    world.blobs.path(weights.digest).write_bytes(b"damaged")
    shutil.rmtree(world.uploads.root)
    (world.config.state / "server.key").chmod(0o644)
    Enrolments(world.config.state).enrol("pi")
    (world.config.state / "devices" / "pi.json").write_text("?")
    before = found(world)
    assert len(before) == 4
    assert any("weights of a+b+c in phase merge" in each and "is damaged" in each for each in before)
    assert "x's update of round 1 is not here" in before
    assert "devices/pi.json cannot be read: enrol pi again" in before
    assert len(found(world, repair=True)) == 4
    after = found(world)
    assert [each for each in after if "enrol pi" not in each] == [
        each for each in after if "gone; the server makes it again" in each
    ]
    world.crash()
    for device in world.link.devices.values():
        device.silent = False
        device.start()
    world.until_finished()
    assert world.loop.finished == "all rounds are done"


def test_check_of_a_journal_that_is_damaged(open_round):
    open_round.journal._database.execute("UPDATE rounds SET body = x'78'")
    with pytest.raises(JournalInvalid, match="rounds"):
        found(open_round)


def test_backup_of_a_server_that_runs_goes_on_where_it_was_made(open_round, tmp_path):
    world = open_round
    copy = tmp_path / "copies" / "copy"
    Enrolments(world.config.state).enrol("pi")
    backup(world.config.state, copy)
    assert copy.stat().st_mode & 0o777 == 0o700
    assert (copy / "server.key").stat().st_mode & 0o777 == 0o600
    assert Enrolments(copy).find("pi") == Enrolments(world.config.state).find("pi")
    journal = FederationJournal(copy / "federation.sqlite3")
    assert {type(result) for result in journal.results(1).values()} == {Update}
    journal.close()
    folder = StateFolder(copy)
    assert problems(folder, repair=False) == []
    folder.close()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_backup_over_something_or_of_nothing_is_refused(open_round, tmp_path):
    with pytest.raises(BackupImpossible, match="exists already"):
        backup(open_round.config.state, tmp_path)
    with pytest.raises(BackupImpossible, match="not a state folder"):
        backup(tmp_path / "none", tmp_path / "copy")


def test_backup_of_a_folder_that_lacks_what_its_journal_names_says_so(open_round, tmp_path):
    shutil.rmtree(open_round.blobs.root)
    with pytest.raises(BackupImpossible, match="changes faster than it is copied"):
        backup(open_round.config.state, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_check_and_backup_are_commands(open_round, tmp_path, capsys):
    state = ["--state", str(open_round.config.state)]
    assert main(["check", *state]) == DONE
    assert "nothing is wrong" in capsys.readouterr().out
    shutil.rmtree(open_round.uploads.root)
    assert main(["check", *state]) == BAD_INPUT
    assert main(["check", "--repair", *state]) == DONE
    assert main(["check", *state]) == DONE
    assert main(["backup", str(tmp_path / "copy"), *state]) == DONE
    assert main(["check", "--state", str(tmp_path / "none")]) == BAD_INPUT
