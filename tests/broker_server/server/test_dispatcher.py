from types import SimpleNamespace

import pytest

from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.device_uploads import DeviceUploads
from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.rules import Rules
from broker_server.server.dispatcher import BrokerRefused, Dispatcher
from edge_runtime.wire.blob import BlobStore, ChunkRun, describe
from edge_runtime.wire.link import Connected, Disconnected
from edge_runtime.wire.messages import Evaluation, Finished, Need, Progress, Refusal, Status, encode
from edge_runtime.wire.topics import Topics

TOPICS = Topics("home")


@pytest.fixture
def waiting(tmp_path, make_link, make_device):
    """A dispatcher before there is a bundle, with a device that has just come online."""
    clock = SimpleNamespace(now_s=0.0)
    link = make_link(clock)
    journal = FederationJournal(tmp_path / "journal")
    notes = []
    dispatcher = Dispatcher(
        link=link,
        topics=TOPICS,
        journal=journal,
        blobs=BlobStore(tmp_path / "blobs"),
        uploads=DeviceUploads(tmp_path / "uploads"),
        coordinator=Coordinator(Rules(min_devices=1)),
        show=notes.append,
        clock=lambda: clock.now_s,
    )
    device = make_device("x", link)

    def run(steps=20):
        for _ in range(steps):
            dispatcher.receive(0.25)
            dispatcher.tick()
            dispatcher.outgoing.flush()

    device.start()
    run()
    yield SimpleNamespace(dispatcher=dispatcher, link=link, device=device, notes=notes, journal=journal, run=run)
    journal.close()


def test_dispatcher_lets_devices_join_before_there_is_a_bundle(waiting):
    assert waiting.notes == ["x has joined: 1 online, a round needs 1"]
    assert [text for _, text in waiting.journal.notes()] == waiting.notes
    assert list(waiting.journal.hellos()) == ["x"]
    assert waiting.dispatcher.coordinator.online == ["x"]
    assert not waiting.device.plans


def test_dispatcher_calls_the_roll_when_it_connects_and_of_whoever_it_hears(waiting):
    """As on a broker that keeps nothing: the device was there first, and the server hears no status."""
    coordinator = waiting.dispatcher.coordinator
    coordinator.on_status("x", online=False, now_s=0.0)
    waiting.link.events.append(Connected())
    waiting.run()
    assert coordinator.online == ["x"]
    coordinator.on_status("x", online=False, now_s=0.0)
    waiting.device.tell(Progress(round=3, stage="train", done=1, total=2))
    waiting.run()
    assert coordinator.online == ["x"]


def test_dispatcher_calls_devices_that_were_enrolled_and_never_heard(waiting, make_device):
    new = make_device("new", waiting.link)
    waiting.dispatcher._enrolled = lambda: ["new", "absent"]
    waiting.link.events.append(Connected())
    waiting.run()
    assert waiting.dispatcher.coordinator.online == ["new", "x"]
    assert new.plans == []


def test_dispatcher_declines_what_belongs_to_no_round(waiting):
    device = waiting.device
    device.tell(Progress(round=3, stage="train", done=1, total=2))
    device.tell(Refusal(round=3, group="a", reason="heat", detail=""))
    device.tell(Need(digest=describe(b"x").digest, runs=(ChunkRun(0, 1),)))
    device.tell(
        Evaluation(
            round=3,
            group="a",
            loss={"a": 1.0},
            examples={"a": 1},
            wall_s=1.0,
            peak_rss_bytes=None,
            bytes_down=0,
            energy=None,
        )
    )
    device.say(TOPICS.up("x"), b"a fragment")
    device.say(TOPICS.upload("x", describe(b"x").digest, 0), b"x")
    device.say(TOPICS.event("x"), b"{")
    waiting.run()
    assert [(ack.round, ack.accepted) for ack in device.acks] == [(3, False)]
    assert waiting.dispatcher.counts == {
        "progress of another round": 1,
        "refusal of another round": 1,
        "need of an unknown blob": 1,
        "result not asked for": 1,
        "fragment that nobody asked for": 1,
        "chunk not asked for": 1,
        "MessageInvalid": 1,
    }


def test_dispatcher_notes_a_lost_connection_and_ends_with_a_refused_one(waiting):
    waiting.link.events.append(Disconnected("gone", refused=False))
    waiting.run()
    assert waiting.notes[-1] == "the connection to the broker is lost: gone"
    waiting.link.events.append(Disconnected("cut", refused=False, too_large_bytes=200_000))
    waiting.run()
    assert "the broker cuts the connection on a message of 200000 bytes: at most 98304 bytes" in waiting.notes[-1]
    assert waiting.dispatcher.served.most_bytes == 98_304
    waiting.link.events.append(Disconnected("bad token", refused=True))
    with pytest.raises(BrokerRefused, match="bad token"):
        waiting.run()


def test_dispatcher_takes_a_device_offline(waiting):
    waiting.device.say(TOPICS.status("x"), encode(Status(state="offline")))
    waiting.run()
    assert waiting.dispatcher.coordinator.online == []
    waiting.dispatcher.do(waiting.dispatcher.coordinator.finish("done"))
    waiting.device.start()
    waiting.run()
    assert waiting.device.finished == Finished(detail="done")
