import contextlib
import os
import socket
import threading
import time

import pytest
from answering import Answering

from broker_server.operator import client as clients
from broker_server.operator import control_socket
from broker_server.operator import messages as shown
from broker_server.operator.client import ControlClient, ServerNotRunning
from broker_server.operator.control_socket import NAME, ControlSocket, address
from broker_server.operator.questions import Questions


def answer(request):
    """What a desk would say: the request, and for the fleet a megabyte."""
    text = "x" * (1 << 20) if isinstance(request, shown.AskFleet) else type(request).__name__
    return shown.Done(says=text)


class Server:
    """A control socket, and a loop that answers."""

    def __init__(self, folder, **options):
        self.asked = []
        self._loop = Answering(self._answer)
        self.control = ControlSocket(folder, self._loop.questions, **options)
        self.control.start()

    def _answer(self, request):
        self.asked.append(request)
        return answer(request)

    def close(self):
        self._loop.close()
        self.control.close()


@pytest.fixture
def serve(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(folder=tmp_path, **options):
            server = Server(folder, **options)
            stack.callback(server.close)
            return server

        yield start


def connected(folder):
    plain = socket.socket(socket.AF_UNIX)
    plain.settimeout(10)
    with address(folder) as path:
        plain.connect(path)
    return plain


def test_socket_answers_again_and_again(serve, tmp_path):
    serve()
    with contextlib.closing(ControlClient(tmp_path)) as client:
        for _ in range(3):
            assert client.ask(shown.AskStatus()) == shown.Done(says="AskStatus")
        assert len(client.ask(shown.AskFleet()).says) == 1 << 20


def test_socket_is_its_owners_alone(serve, tmp_path):
    serve()
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600


def test_socket_takes_the_place_of_one_that_a_killed_server_has_left(serve, tmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / NAME))
    left.close()
    with pytest.raises(ServerNotRunning, match="no server runs"):
        ControlClient(tmp_path)
    serve()
    assert ControlClient(tmp_path).ask(shown.AskStatus()).says == "AskStatus"


def test_socket_in_a_folder_with_a_long_name(serve, tmp_path):
    folder = tmp_path / ("long" * 30) / ("name" * 30)
    folder.mkdir(parents=True)
    serve(folder)
    assert ControlClient(folder).ask(shown.AskStatus()).says == "AskStatus"


@pytest.mark.parametrize("sent", [b"{\n", b"\xff\xff\n", b'{"type":"act","act":"burn"}\n'])
def test_socket_says_what_it_does_not_understand(serve, tmp_path, sent):
    serve()
    with connected(tmp_path) as plain:
        plain.sendall(sent)
        assert isinstance(shown.read_answer(plain.makefile("rb").readline()), shown.NotDone)


def test_socket_cuts_off_a_line_without_end(serve, tmp_path):
    server = serve()
    with connected(tmp_path) as plain:
        with contextlib.suppress(OSError):
            plain.sendall(b"x" * 100_000)
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(100) == b""
    assert server.asked == []


def test_socket_serves_others_while_some_do_not_read(serve, tmp_path):
    server = serve(stall_s=0.2)
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(connected(tmp_path)) for _ in range(10)]
        for each in stalled:
            each.sendall(shown.line(shown.AskFleet()))  # a megabyte, which they do not take
        client = stack.enter_context(contextlib.closing(ControlClient(tmp_path)))
        assert client.ask(shown.AskStatus()).says == "AskStatus"
        while len(server.control._connections) > 1:
            time.sleep(0.01)
        for each in stalled:  # cut off, with less than all of it
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while more := each.recv(1 << 16):
                    received += len(more)
            assert received < 1 << 20


def test_socket_has_room_for_so_many(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(control_socket, "CONNECTIONS", 2)
    serve()
    with contextlib.ExitStack() as stack:
        clients_ = [stack.enter_context(contextlib.closing(ControlClient(tmp_path))) for _ in range(3)]
        assert [each.ask(shown.AskStatus()).says for each in clients_[:2]] == ["AskStatus"] * 2
        refused = shown.read_answer(clients_[2]._file.readline())
        assert refused == shown.NotDone(says="2 commands are connected already: end some")


def test_socket_lets_its_last_answer_leave(tmp_path):
    server = Server(tmp_path)
    with connected(tmp_path) as plain:
        plain.sendall(shown.line(shown.AskFleet()))
        file = plain.makefile("rb")
        first = file.read(10)
        ended = threading.Thread(target=server.close)
        ended.start()
        assert len(first + file.readline()) > 1 << 20
        ended.join()
    assert not (tmp_path / NAME).exists()
    server.control.close()


def test_client_without_a_server(tmp_path):
    with pytest.raises(ServerNotRunning, match="python -m broker_server"):
        ControlClient(tmp_path)
    with pytest.raises(ServerNotRunning, match="no server runs"):
        ControlClient(tmp_path / "nowhere")


@pytest.mark.skipif(os.getuid() == 0, reason="root may do anything")
def test_client_of_another_user(serve, tmp_path):
    serve()
    (tmp_path / NAME).chmod(0)
    with pytest.raises(ServerNotRunning, match="another user"):
        ControlClient(tmp_path)


def test_client_of_a_server_that_is_busy_or_ends(tmp_path):
    control = ControlSocket(tmp_path, Questions(lambda: None))
    control.start()
    client = ControlClient(tmp_path, patience_s=0.05)
    with pytest.raises(ServerNotRunning, match=r"has not answered for 0\.05 s"):
        client.ask(shown.AskStatus())
    client = ControlClient(tmp_path)
    control.close()
    with pytest.raises(ServerNotRunning, match="has ended"):
        client.ask(shown.AskStatus())


def test_client_of_another_version(tmp_path, monkeypatch):
    server = Server(tmp_path)
    monkeypatch.setattr(clients, "MAX_ANSWER_BYTES", 10)
    with contextlib.closing(ControlClient(tmp_path)) as client, pytest.raises(ServerNotRunning, match="has ended"):
        client.ask(shown.AskStatus())
    monkeypatch.setattr(clients, "read_answer", shown.read_request)
    monkeypatch.setattr(clients, "MAX_ANSWER_BYTES", 1000)
    with (
        contextlib.closing(ControlClient(tmp_path)) as client,
        pytest.raises(ServerNotRunning, match="another version"),
    ):
        client.ask(shown.AskStatus())
    server.close()
