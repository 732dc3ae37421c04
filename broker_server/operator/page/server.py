"""The page's server: uvicorn on a thread of its own, and the token in the state folder."""

import contextlib
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn

from broker_server.operator.page.app import Page
from broker_server.operator.page.login import TOKEN_BYTES, Logins
from broker_server.operator.questions import Questions
from edge_runtime.wire.files import write_atomic

TOKEN = "page.token"  # noqa: S105 - a file's name
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_SECRET = 0o600
_ENDING_S = 2


class PageUnavailable(OSError):
    """The page cannot be served; the sentence says why."""


def token_of(state: Path) -> str:
    """Return the token of a state folder's page, made at the first call."""
    path = state / TOKEN
    with contextlib.suppress(FileNotFoundError):
        if found := path.read_text().strip():
            return found
    made = secrets.token_hex(TOKEN_BYTES)
    write_atomic(path, f"{made}\n".encode(), mode=_SECRET)
    return made


def serve(
    questions: Questions,
    *,
    state: Path,
    report: Path,
    host: str,
    port: int,
    is_local: bool,
    certificate: tuple[Path, Path] | None = None,
) -> Callable[[], None]:
    """Serve the page at host:port, by TLS where there is a `certificate` with its key; return what ends it.

    Raises PageUnavailable.
    """
    page = Page(
        questions,
        Logins(token_of(state), is_open=is_local),
        report=report,
        hosts=LOCAL_NAMES if is_local else None,
        is_tls=certificate is not None,
    )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, OverflowError) as exc:
        raise PageUnavailable(f"the page cannot be served at {host}:{port}: {exc}; choose another with --page") from exc
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(
        uvicorn.Config(
            page.app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            limit_concurrency=256,
            timeout_graceful_shutdown=_ENDING_S,
            ssl_certfile=None if certificate is None else certificate[0],
            ssl_keyfile=None if certificate is None else certificate[1],
        )
    )
    thread = threading.Thread(target=server.run, args=([listener],), name="page", daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join()
        listener.close()

    return stop
