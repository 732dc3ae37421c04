"""`python -m edge_runtime run`: the agent as a process, its signals and its exit codes."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from edge_runtime.agent.config import AgentConfig, ConfigInvalid, read
from edge_runtime.agent.loop import Agent
from edge_runtime.agent.state import State, StateUnusable
from edge_runtime.agent.work import Worker, WorkerUnusable
from edge_runtime.wire.link import Link, LinkInvalid, MqttLink
from edge_runtime.wire.messages import Status, encode
from edge_runtime.wire.topics import Topics

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_STATE = 3
EXIT_REFUSED = 5

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `run`."""
    parser.add_argument("--config", type=Path, required=True, metavar="agent.toml", help="the device's configuration")
    parser.add_argument("--verbose", action="store_true", help="log more")


def connect(config: AgentConfig) -> Link:
    """A link to the configured broker, with the device's last will. Raises LinkInvalid."""
    topics = Topics(config.federation)
    return MqttLink(
        config.url,
        client_id=config.device,
        username=config.device,
        password=config.token,
        will=(topics.status(config.device), encode(Status(state="offline"))),
        clean_session=True,  # what was missed is said again; an old queue would only bring closed rounds
        ca_file=config.ca_file,
    )


def run(
    args: argparse.Namespace,
    make_worker: Callable[[AgentConfig], Worker],
    *,
    make_link: Callable[[AgentConfig], Link] = connect,
) -> int:
    """Run the agent until the federation ends or a signal comes. The exit code says what happened.

    0: finished, or stopped by SIGTERM or SIGINT; 2: configuration; 3: data set or state folder; 5: refused by the
    broker. `make_worker` raises WorkerUnusable.
    """
    level = logging.DEBUG if args.verbose else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
    try:
        config = read(args.config)
    except ConfigInvalid as exc:
        return _fail(EXIT_CONFIG, str(exc))
    try:
        state = State(config.state)
    except StateUnusable as exc:
        return _fail(EXIT_STATE, str(exc))
    try:
        return _run(config, state, make_worker, make_link)
    except LinkInvalid as exc:
        return _fail(EXIT_CONFIG, f"{args.config}: {exc}")
    except (WorkerUnusable, StateUnusable) as exc:
        return _fail(EXIT_STATE, str(exc))
    finally:
        state.close()


def _run(
    config: AgentConfig,
    state: State,
    make_worker: Callable[[AgentConfig], Worker],
    make_link: Callable[[AgentConfig], Link],
) -> int:
    stop = threading.Event()
    worker = make_worker(config)
    link = make_link(config)
    agent = Agent(
        link,
        state,
        worker,
        device=config.device,
        topics=Topics(config.federation),
        server_key=config.server_key,
        max_download_bytes=config.max_download_bytes,
    )
    _stop_on_signals(stop)
    _log.info("device %s joins federation %s at %s", config.device, config.federation, config.url)
    ending = agent.run(stop)
    if ending.kind == "refused":
        return _fail(
            EXIT_REFUSED,
            f"{config.url}: {ending.detail}. If the token has expired or is another device's, enrol {config.device} "
            "again and replace the configuration file",
        )
    _log.info("%s: %s", ending.kind, ending.detail or "the federation has ended")
    return EXIT_OK


def _stop_on_signals(stop: threading.Event) -> None:
    """The first SIGTERM or SIGINT ends cleanly, a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def _fail(code: int, sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return code
