import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.wire.errors import TopicInvalid
from edge_runtime.wire.topics import Address, Topics, may_publish, may_subscribe

DIGEST = "0123456789abcdef" * 4
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
INDICES = st.integers(0, 999_999_999)
LEVELS = st.sampled_from(
    [
        "mas",
        "4",
        "lab",
        "device",
        "pi-1",
        "pi-2",
        "status",
        "event",
        "command",
        "upload",
        "download",
        DIGEST,
        "0",
        "+",
        "#",
        "",
        "$SYS",
    ]
)
ODD_TOPICS = st.lists(LEVELS | st.text(max_size=4), max_size=9).map("/".join) | st.builds(
    "mas/4/lab/{}".format, st.lists(LEVELS, max_size=6).map("/".join)
)


@given(NAMES, NAMES, DIGESTS, INDICES)
def test_parse_is_the_inverse_of_every_format(federation, device, digest, index):
    topics = Topics(federation)
    assert topics.parse(topics.status(device)) == Address(device=device, kind="status")
    assert topics.parse(topics.event(device)) == Address(device=device, kind="event")
    assert topics.parse(topics.command(device)) == Address(device=device, kind="command")
    assert topics.parse(topics.up(device)) == Address(device=device, kind="up")
    assert topics.parse(topics.down(device)) == Address(device=device, kind="down")
    upload = topics.upload(device, digest, index)
    assert topics.parse(upload) == Address(device=device, kind="upload", digest=digest, index=index)
    download = topics.download(device, digest, index)
    assert topics.parse(download) == Address(device=device, kind="download", digest=digest, index=index)


def test_from_devices_names_what_devices_publish():
    assert Topics("lab").from_devices() == (
        "mas/4/lab/device/+/status",
        "mas/4/lab/device/+/event",
        "mas/4/lab/device/+/upload/+/+",
        "mas/4/lab/device/+/split_learning/up",
    )


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "device/pi-1/status",
        "mas/1/lab/device/pi-1/status",
        "mas/4/lab",
        "mas/4/field/device/pi-1/status",
        "mas/4/lab/device/pi-1/status/",
        "mas/4/lab/device/pi-1\n/status",
        "mas/4/lab/device/+/status",
        "mas/4/lab/device/pi-1/will",
        "mas/4/lab/blob/+/+",
        f"mas/4/lab/blob/{DIGEST}/1",
        f"mas/4/lab/device/pi-1/upload/{DIGEST}/01",
        f"mas/4/lab/device/pi-1/upload/{DIGEST}/-1",
        f"mas/4/lab/device/pi-1/upload/{DIGEST}/٣",
        f"mas/4/lab/device/pi-1/upload/{DIGEST}/1000000000",
        f"mas/4/lab/device/pi-1/upload/{DIGEST}\n/1",
        f"mas/4/lab/device/pi-1/upload/{DIGEST.upper()}/1",
        f"mas/4/lab/device/pi-1/upload/{DIGEST[1:]}/1",
        "mas/4/lab/" + "device/" * 10_000,
    ],
)
def test_parse_refuses_what_is_no_topic_of_the_federation(topic):
    with pytest.raises(TopicInvalid):
        Topics("lab").parse(topic)


@pytest.mark.parametrize("name", ["", "+", "#", "a/b", "a\n", ".a"])
def test_topics_refuses_a_name_that_would_change_the_topic(name):
    with pytest.raises(TopicInvalid, match="cannot name a federation"):
        Topics(name)
    with pytest.raises(TopicInvalid, match="cannot name a device"):
        Topics("lab").command(name)
    with pytest.raises(TopicInvalid, match="chunk of a blob"):
        Topics("lab").upload("pi-1", name, 0)


def _own(topic):
    return topic.split("/")[:5] == ["mas", "4", "lab", "device", "pi-1"]


@given(ODD_TOPICS)
@example(f"mas/4/lab/device/pi-2/upload/{DIGEST}/0")
@example("mas/4/lab/device/pi-1/#")
def test_device_publishes_to_its_own_topics_alone(topic):
    if may_publish("lab", "device", "pi-1", topic):
        assert _own(topic)
        assert not set("+#") & set(topic)
        assert not topic.endswith(("/command", "/down"))
        assert "/download/" not in topic


@given(ODD_TOPICS)
@example("mas/4/lab/#")
@example("mas/4/lab/device/+/command")
@example("mas/4/lab/device/pi-2/download/+/+")
def test_device_subscribes_to_its_own_topics_alone(topic_filter):
    if may_subscribe("lab", "device", "pi-1", topic_filter):
        assert "#" not in topic_filter
        assert _own(topic_filter)


@given(NAMES, DIGESTS, INDICES)
def test_device_and_server_may_do_what_the_protocol_needs(device, digest, index):
    topics = Topics("lab")
    for topic in (topics.status(device), topics.event(device), topics.up(device), topics.upload(device, digest, index)):
        assert may_publish("lab", "device", device, topic)
        assert not may_publish("lab", "device", device + "x", topic)
        assert not may_publish("lab", "server", "server", topic)
    for topic in (topics.command(device), topics.down(device), topics.download(device, digest, index)):
        assert may_publish("lab", "server", "server", topic)
        assert not may_publish("lab", "device", device, topic)
    for topic_filter in (topics.status(device), *topics.to_device(device)):
        assert may_subscribe("lab", "device", device, topic_filter)
    assert all(may_subscribe("lab", "server", "server", topic_filter) for topic_filter in topics.from_devices())


@pytest.mark.parametrize("topic_filter", ["#", "+/1/lab/#", "mas/4/field/#", "mas/4/+/device/+/event", "mas/4/lab"])
def test_server_does_not_reach_another_federation(topic_filter):
    assert not may_subscribe("lab", "server", "server", topic_filter)
    assert not may_publish("lab", "server", "server", topic_filter)


@pytest.mark.parametrize("federation", ["+", "a/b", ""])
@pytest.mark.parametrize("role", ["device", "server", "root"])
def test_invalid_federations_and_names_get_nothing(federation, role):
    for name, home in (("pi-1", federation), ("+", "lab")):
        topic = f"mas/4/{home}/device/{name}/command"
        assert not may_subscribe(home, role, name, topic)
        assert not may_publish(federation, role, name, topic)


def test_unknown_role_gets_nothing():
    topics = Topics("lab")
    assert not may_publish("lab", "root", "pi-1", topics.event("pi-1"))
    assert not may_subscribe("lab", "root", "pi-1", topics.command("pi-1"))
