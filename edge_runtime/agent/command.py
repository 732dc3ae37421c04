"""`python -m edge_runtime run`: the agent as a process, its signals and its exit codes."""

import argparse
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import msgspec

from devices.cli.log import LogFormat, LogLevel, LogSettings, log_to_stderr
from devices.cli.run import BAD_INPUT, DONE, REFUSED, UNAVAILABLE, fail, stop_event
from devices.cli.run import run as run_command
from devices.cli.settings import ConfigInvalid
from devices.cli.values import parse_size
from edge_runtime.agent.config import AgentConfig, read
from edge_runtime.agent.identity import COUNTER, HeldCertificate, HeldToken, ServerKey, load_or_create
from edge_runtime.agent.loop import Agent
from edge_runtime.agent.signed_link import SignedDeviceLink
from edge_runtime.agent.state import State, StateUnusable
from edge_runtime.agent.watchdog import heartbeat
from edge_runtime.agent.work import NoData, Worker, WorkerUnusable
from edge_runtime.energy.account import EnergyAccount
from edge_runtime.energy.meter import MeterUnusable
from edge_runtime.wire.broker_url import BrokerUrl, LinkInvalid
from edge_runtime.wire.counter import Counter
from edge_runtime.wire.envelope import Scope
from edge_runtime.wire.link import Link
from edge_runtime.wire.messages import Status, encode
from edge_runtime.wire.mqtt import MqttLink
from edge_runtime.wire.topics import PROTOCOL, Topics

LOG_FORM = "%(asctime)s %(levelname)s %(message)s"
BEAT_S = 1.0
DATA_S = 5.0
"""Seconds between two looks for a data set that is not there yet."""
_FAULTS: dict[type[Exception], int] = {
    StateUnusable: BAD_INPUT,
    WorkerUnusable: BAD_INPUT,
    MeterUnusable: UNAVAILABLE,
}

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("--config", type=Path, required=True, metavar="agent.toml", help="the device's configuration")
    parser.add_argument(
        "--meter",
        metavar="SOURCE",
        help="what measures energy, in place of the file's `meter`: auto, none, or a source as `energy --source` takes",
    )
    parser.add_argument(
        "--memory-budget",
        type=_size,
        metavar="SIZE",
        help="the most memory that the process may take, such as 220MiB, in place of the file's `memory_budget`",
    )
    parser.add_argument(
        "--log-level", choices=get_args(LogLevel), help="the least that is worth a line, in place of the file's"
    )
    parser.add_argument(
        "--log-format", choices=get_args(LogFormat), help="lines for people, or JSON, in place of the file's"
    )
    parser.add_argument("--verbose", action="store_true", help="as --log-level debug")


def _size(text: str) -> str:
    try:
        parse_size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


def connect(config: AgentConfig) -> Link:
    """Return a signed link to the configured broker, with the device's last will.

    Raises LinkInvalid, StateUnusable.
    """
    where = BrokerUrl.parse(config.url)
    if not where.tls and not where.is_here and not config.insecure:
        raise LinkInvalid(
            f"{config.url} is without TLS: enrol the device with an mqtts:// URL, or allow it by insecure = true"
        )
    topics = Topics(config.federation)
    key = load_or_create(config.state)
    token, certificate = HeldToken(config.state, config.token), HeldCertificate(config.state, config.certificate, key)
    link = MqttLink(
        config.url,
        client_id=config.device,
        username=config.device,
        password=lambda: token.value,
        will=(topics.status(config.device), encode(Status(state="offline"))),
        # Missed messages are sent again; an old queue would only have those of closed rounds. The nodes of a cluster
        # share no queue that is not kept.
        clean_session=not where.is_cluster,
        ca_file=config.ca_file,
        ca_pem=None if config.ca_file else config.ca,
        certificate_file=certificate.file,
    )
    signed = SignedDeviceLink(
        link,
        Scope(federation=config.federation, device=config.device),
        key=key,
        code=bytes.fromhex(config.code),
        server_key=ServerKey(config.state, config.server_key),
        counter=Counter(config.state / COUNTER),
    )
    signed.on_gift = {b"token": token.keep, b"certificate": certificate.keep}
    return signed


def unmeasured(_config: AgentConfig) -> EnergyAccount:
    """Return an account without a meter."""
    return EnergyAccount(None)


def run(
    args: argparse.Namespace,
    make_worker: Callable[[AgentConfig], Worker],
    *,
    make_link: Callable[[AgentConfig], Link] = connect,
    make_account: Callable[[AgentConfig], EnergyAccount] = unmeasured,
) -> int:
    """Run the agent until the federation ends or a signal comes. Return the exit code.

    0: finished, or stopped by SIGTERM or SIGINT; 2: configuration; 3: data set or state folder; 4: the meter that was
    named; 5: refused by the broker. `make_worker` raises WorkerUnusable, `make_account` ConfigInvalid and
    MeterUnusable.
    """
    log_to_stderr(LogSettings(format=args.log_format or "human"), LOG_FORM)
    return run_command(partial(_configured, args, make_worker, make_link, make_account), _FAULTS)


def _configured(
    args: argparse.Namespace,
    make_worker: Callable[[AgentConfig], Worker],
    make_link: Callable[[AgentConfig], Link],
    make_account: Callable[[AgentConfig], EnergyAccount],
) -> int:
    config = read(args.config)
    if args.memory_budget is not None:
        config = msgspec.structs.replace(config, memory_budget=args.memory_budget)
    if args.meter is not None:
        config = msgspec.structs.replace(config, meter=args.meter)
    level: LogLevel = "debug" if args.verbose else args.log_level or config.log_level
    log_to_stderr(LogSettings(level=level, format=args.log_format or config.log_format), LOG_FORM)
    state = State(config.state)
    try:
        with stop_event() as stop:
            return _joined(config, state, stop, make_worker, make_link, make_account)
    except (LinkInvalid, ConfigInvalid) as exc:
        raise ConfigInvalid(f"{args.config}: {exc}") from exc
    except MeterUnusable as exc:
        raise MeterUnusable(f"the meter {config.meter} cannot be used: {exc}") from exc
    finally:
        state.close()


def _joined(
    config: AgentConfig,
    state: State,
    stop: threading.Event,
    make_worker: Callable[[AgentConfig], Worker],
    make_link: Callable[[AgentConfig], Link],
    make_account: Callable[[AgentConfig], EnergyAccount],
) -> int:
    beat = heartbeat()
    worker = _with_data(partial(make_worker, config), stop, beat)
    if worker is None:
        return DONE
    account = make_account(config)
    link = make_link(config)
    agent = Agent(
        link,
        state,
        worker,
        device=config.device,
        topics=Topics(config.federation),
        server_key=ServerKey(config.state, config.server_key).hex,
        max_download_bytes=config.max_download_bytes,
        account=account,
        beat=beat,
        limits=config.limits,
        chunk_bytes=config.chunk_bytes,
    )
    if isinstance(link, SignedDeviceLink):
        link.on_key = agent.trust
    with account:
        _measure_idle(account, config.meter_idle_s, stop, beat)
        _log.info("device %s joins federation %s at %s", config.device, config.federation, config.url)
        ending = agent.run(stop)
    if ending.kind == "refused":
        return fail(
            REFUSED,
            f"{config.url}: {ending.detail}. If the token has expired or is another device's, enrol {config.device} "
            "again and replace the configuration file; if the server runs another version of MAS Edge than this one "
            f"(protocol {PROTOCOL}), install the server's version here",
        )
    _log.info("%s: %s", ending.kind, ending.detail or "the federation has ended")
    return DONE


def _with_data(make: Callable[[], Worker], stop: threading.Event, beat: Callable[[], None]) -> Worker | None:
    """Make the worker as soon as its data set is there; None if `stop` is set before."""
    waits = False
    while not stop.is_set():
        try:
            return make()
        except NoData as exc:  # noqa: PERF203 - once in some seconds
            if not waits:
                _log.warning("%s; waiting for it", exc)
            waits = True
            _wait(stop, beat, DATA_S)
    return None


def _measure_idle(account: EnergyAccount, seconds: float, stop: threading.Event, beat: Callable[[], None]) -> None:
    """Measure the baseline, unless there is no meter, or a process was cut off at work: then its baseline stands."""
    if account.source is None:
        _log.info("energy is not measured%s", "".join(f"; {reason}" for reason in account.reasons))
        return
    how = "estimated" if account.is_estimated else "measured"
    _log.info("energy is %s by %s (%s)", how, account.source, account.covers)
    if seconds > 0 and (account.idle_w is None or not account.rounds()):
        idle_w = account.measure_idle(seconds, partial(_wait, stop, beat))
        _log.info("the idle board: %s", "not measured" if idle_w is None else f"{idle_w:.2f} W")


def _wait(stop: threading.Event, beat: Callable[[], None], seconds: float) -> None:
    """Wait, with signs of life, for this time or until `stop` is set."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0 and not stop.wait(min(left_s, BEAT_S)):
        beat()
