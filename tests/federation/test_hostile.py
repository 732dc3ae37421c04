"""A federation of real processes over TLS, while somebody without a token and an enrolled device do what they can."""

import socket
import threading
import time

import pytest
import samples

pytest.importorskip("jwt")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from broker_server.server.state import read_url
from edge_runtime.wire.blob import Blob
from edge_runtime.wire.link import LinkFull
from edge_runtime.wire.messages import encode
from edge_runtime.wire.topics import Topics

pytestmark = pytest.mark.workstation
SILENT = 300


def test_federation_goes_on_among_silent_sockets_and_a_device_that_floods_the_server(site):
    server = site.serve(tls="always", min_devices=2, merged_rounds=1, groups=1, quorum=2)
    site.until(server, "a device joins")
    site.url = read_url(site.state)
    silent = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(SILENT)]
    link, topics, stop = site.link("mallory"), Topics("home"), threading.Event()
    sent = [0]

    def flood():
        while not stop.is_set():
            sent[0] += 1
            hello = samples.hello(software=f"version {sent[0]}", ort_training="require")
            blob = Blob(digest=f"{sent[0]:064x}", size_bytes=1000)
            try:
                link.publish(topics.event("mallory"), encode(hello))
                link.publish(topics.event("mallory"), encode(samples.update(sent[0] % 5, weights=blob)))
            except LinkFull:
                time.sleep(0.01)
            while link.receive(0.0):
                pass

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        site.ends(server, site.device("a"), site.device("b"))
    finally:
        stop.set()
        thread.join()
        link.close()
        for each in silent:
            each.close()
    assert sent[0] > 100
    assert server.said.count("mallory has joined") < 100
    assert "Traceback" not in server.said
