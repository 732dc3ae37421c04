"""A subscription to one MQTT topic, for a metering plug that publishes its watts."""

import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from edge_runtime.wire.link import Delivery, Link
from edge_runtime.wire.mqtt import MqttLink

POLL_S = 0.5


class Listener:
    """Hands every message of a topic to `take`, on a thread of its own, until it is closed."""

    def __init__(self, link: Link, topic: str, take: Callable[[bytes], None]) -> None:
        self._link = link
        self._take = take
        self._closed = threading.Event()
        link.subscribe(topic)
        self._thread = threading.Thread(target=self._run, name="plug", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and disconnect from the broker."""
        self._closed.set()
        self._thread.join()
        self._link.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            event = self._link.receive(POLL_S)
            if isinstance(event, Delivery):
                self._take(event.payload)


def listen(
    url: str, topic: str, take: Callable[[bytes], None], *, username: str, password: str, ca_file: Path | None = None
) -> Callable[[], None]:
    """Subscribe at a broker; the function returned ends the subscription. Raises LinkInvalid for a URL that is none."""
    link = MqttLink(
        url,
        client_id=f"energy-{secrets.token_hex(6)}",
        username=username,
        password=password,
        clean_session=True,
        ca_file=ca_file,
        inbox_bytes=1 << 20,
        max_payload_bytes=1 << 16,
    )
    return Listener(link, topic, take).close
