"""A command's end of a server's control socket."""

import socket
from pathlib import Path

from broker_server.operator.control_socket import address
from broker_server.operator.messages import MAX_ANSWER_BYTES, Answer, Request, line, read_answer
from edge_runtime.wire.errors import MessageInvalid

PATIENCE_S = 60.0
"""How long a server may take: closing a round of a large model is one event."""


class ServerNotRunning(RuntimeError):
    """No server runs on this state folder, or it does not answer; the sentence says which."""


class ControlClient:
    """A connection to the server that runs on a state folder. Raises ServerNotRunning, as its methods do."""

    def __init__(self, folder: Path, *, patience_s: float = PATIENCE_S) -> None:
        self._folder = folder
        self._patience_s = patience_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience_s)
        try:
            with address(folder) as path:
                self._socket.connect(path)
        except PermissionError as exc:
            self._socket.close()
            raise ServerNotRunning(
                f"{folder} belongs to another user: run the command as the one who started the server"
            ) from exc
        except OSError as exc:
            self._socket.close()
            raise ServerNotRunning(
                f"no server runs on {folder}: start it with `python -m broker_server`, or name another folder with "
                "--state"
            ) from exc
        self._file = self._socket.makefile("rb")

    def ask(self, request: Request) -> Answer:
        """Return the server's answer."""
        try:
            self._socket.sendall(line(request))
            answer = self._file.readline(MAX_ANSWER_BYTES + 1)
        except TimeoutError as exc:
            raise ServerNotRunning(
                f"the server on {self._folder} has not answered for {self._patience_s:g} s: it may be closing a round "
                "of a large model; ask again"
            ) from exc
        except OSError as exc:
            raise ServerNotRunning(f"the server on {self._folder} has ended") from exc
        if not answer.endswith(b"\n"):
            raise ServerNotRunning(f"the server on {self._folder} has ended")
        try:
            return read_answer(answer)
        except MessageInvalid as exc:
            raise ServerNotRunning(f"the server on {self._folder} is of another version of MAS Edge: {exc}") from exc

    def close(self) -> None:
        """Disconnect."""
        self._file.close()
        self._socket.close()
