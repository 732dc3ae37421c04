"""A running server: state folder, broker, loop and view put together, until it is stopped."""

import contextlib
import logging
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.mqtt.auth import TokenAuthorizer
from broker_server.mqtt.broker import BrokerNotStarted, EmbeddedBroker
from broker_server.mqtt.stats import Stats
from broker_server.report import build as reports
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.encoder_process import EncoderSupervisor
from broker_server.rounds.federation import Federation
from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.ort_training_process import ArtifactBuilder
from broker_server.server.audit import AuditLog
from broker_server.server.certificates import Certificates, CertificatesInvalid
from broker_server.server.config import ServerConfig
from broker_server.server.dispatcher import Dispatcher
from broker_server.server.enrol import own_address
from broker_server.server.enrolments import Enrolments
from broker_server.server.keys import load_or_create, retired_keys, signing_key
from broker_server.server.log_view import LogView
from broker_server.server.loop import ServerLoop, Watcher, Watchers
from broker_server.server.operator_access import OperatorAccess, operator_access
from broker_server.server.progress import LiveView, PlainView
from broker_server.server.refusal_watch import RefusalWatch
from broker_server.server.refusals import RefusalLine
from broker_server.server.signed_link import SignedServerLink
from broker_server.server.state import COUNTER, StateFolder
from broker_server.server.token_renewal import TokenRenewal
from devices.cli.settings import ConfigInvalid
from edge_runtime.wire import bundle_folder, tokens
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.broker_url import BrokerUrl, is_loopback
from edge_runtime.wire.connection_fault import Ends
from edge_runtime.wire.counter import Counter
from edge_runtime.wire.encoder_pipe import EncoderServerProcess
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.link import Connected, Link
from edge_runtime.wire.mqtt import MqttLink
from edge_runtime.wire.topics import Topics

_LOG = logging.getLogger("broker_server")
Say = Callable[[str], None]
PORT_SEARCH = 20
"""The ports that are tried after one that is in use."""
LINGER_S = 3.0
"""The time that the last messages of a finished federation get to leave."""
BUNDLE_S = 1.0
"""The time between two looks for a missing bundle."""
RENEWAL_S = 86_400.0
"""The time between two looks at the age of the broker's certificate."""
STRANGER_S = 3.0
"""How long a broker of others may take to let a stranger in."""
SERVER = "server"
BROKER = Ends(peer="broker", here="machine", trusting="name the certificates to trust with --ca-file")
"""What a broker of others is to the server."""
ORT_TRAINING = "ort_training"
"""The folder in the state folder where ONNX Runtime training artifacts are made."""
TOKEN_S = 3600.0
"""The life of the token that a broker of others gets; each connection is made with a new one."""


def serve(
    config: ServerConfig,
    *,
    broker: str | None = None,
    ca_file: Path | None = None,
    token: str | None = None,
    is_new: bool = False,
    is_once: bool = False,
    is_quiet: bool = False,
    report: Path | None = None,
) -> bool:
    """Serve until stopped, or with `is_once` until the federation has finished; return whether it did as planned.

    With `broker`, a URL, that broker is used and none is started. Raises StateBusy, StateDamaged, JournalInvalid,
    JournalUnwritable, KeyInvalid, BrokerNotStarted, BrokerRefused, LinkInvalid, BundleInvalid, FederationChanged,
    SplitImpossible, ConfigInvalid; OSError as the file system does.
    """
    if broker is not None and config.broker.certificate is not None:
        raise ConfigInvalid(
            "certificate and key are for the broker that this server starts: with --broker leave them out"
        )
    folder = StateFolder(config.state)
    with contextlib.ExitStack() as stack:
        stack.callback(folder.close)
        if is_new:
            folder.clear()
        key, signing = load_or_create(config.state), signing_key(config.state)
        journal, blobs = folder.open()
        stack.callback(journal.close)
        say: Say = partial(_LOG.info, "%s") if config.log.format == "json" else partial(print, flush=True)
        watch = RefusalWatch()
        renewal = None
        if broker is None:
            authorizer = _authorizer(config, key, watch)
            plain, watch.stats = stack.enter_context(_embedded(config, authorizer, folder, watch, say))
            renewal = TokenRenewal(
                key, config.federation, authorizer, life_s=config.broker.token_s, clock=time.monotonic
            )
        else:
            external = _external(config, key, folder, say, url=broker, token=token, ca_file=ca_file)
            plain = stack.enter_context(external)
        link = SignedServerLink(
            plain,
            Topics(config.federation),
            key=signing,
            enrolments=Enrolments(config.state),
            counter=Counter(config.state / COUNTER),
            retired=retired_keys(config.state),
            lock_out_clones=config.broker.lock_out_clones,
            renewal=renewal,
        )
        watcher = LogView() if config.log.format == "json" else _watcher(stack, is_quiet=is_quiet)
        builder = _builder(config)
        if builder is not None:
            stack.callback(builder.stop)
        encoder = _encoder(config, link)
        if encoder is not None:
            stack.callback(encoder.close)
        dispatcher = Dispatcher(
            link=link,
            topics=Topics(config.federation),
            journal=journal,
            blobs=blobs,
            uploads=folder.uploads,
            coordinator=Coordinator(
                config.rounds, journal.hellos(), seed=config.seed, answer_times=journal.answer_times()
            ),
            show=watcher.note,
            builds_artifacts=builder is not None,
            chunk_bytes=config.broker.chunk_bytes,
            enrolled=Enrolments(config.state).current,
        )
        audit = AuditLog(config.state)
        operator = stack.enter_context(
            operator_access(
                config,
                dispatcher,
                link,
                audit,
                refused=lambda: link.refused,
                watch=watch,
                report=report or config.state / "report",
                names=_names(config),
            )
        )
        watch.say = partial(_say_refusal, dispatcher, watcher)
        watchers = Watchers(watcher, operator.desk)

        def note(text: str) -> None:
            audit.add("noted", why=text)
            dispatcher.note(text)

        def refuse(who: str, why: str) -> None:
            audit.add("refused", device=who, why=why)
            watch.add(who, why)

        link.note, link.refuse = note, refuse
        audit.add("started")
        stack.callback(audit.add, "stopped")
        is_here = config.bundle is not None or _is_bundle(config.bundle_path)
        federation = (
            _federation(config, dispatcher, signing)
            if is_here
            else _await_bundle(config, dispatcher, watchers, signing, operator)
        )
        if federation is None:
            return True
        loop = ServerLoop(federation, dispatcher, watchers, builder=builder, encoder=encoder)
        operator.desk.loop = loop
        loop.start()
        _run(loop, operator, is_once=is_once, out=report or config.state / "report")
        return not loop.failed


def _say_refusal(dispatcher: Dispatcher, watcher: Watcher, line: RefusalLine) -> None:
    if isinstance(watcher, LogView):
        dispatcher.journal.note(line.text)
        watcher.refusal(line)
    else:
        dispatcher.note(line.text)


def write_report(out: Path, journal: FederationJournal, blobs: BlobStore) -> Path:
    """Write report.json, report.html and models/ of a journal; return the page's path. Raises ReportImpossible."""
    from broker_server.report import html as report_html  # matplotlib is slow to import, and needed at the end alone

    built = reports.build(journal)
    reports.write(out, built, reports.models(journal, blobs))
    return report_html.write(out, built, affinities=reports.affinities(journal))


def _await_bundle(
    config: ServerConfig, dispatcher: Dispatcher, watcher: Watcher, key: Ed25519PrivateKey, operator: OperatorAccess
) -> Federation | None:
    """Return the federation as soon as there is a bundle; until then devices may join. None if the operator ends it.

    Raises BrokerRefused.
    """
    dispatcher.note(
        f"no bundle at {config.bundle_path}, so no rounds run: make one with "
        f"`python -m export compile FILE.py:build --out {config.bundle_path}` and it is picked up"
    )
    looked_s, problem = time.monotonic(), ""
    while operator.goes_on():
        dispatcher.receive(BUNDLE_S)
        if dispatcher.tick():
            watcher.refresh(dispatcher.coordinator, None)
        dispatcher.outgoing.flush()
        now_s = time.monotonic()
        if now_s - looked_s < BUNDLE_S or not _is_bundle(config.bundle_path):
            continue
        looked_s = now_s
        try:
            return _federation(config, dispatcher, key)
        except BundleInvalid as exc:  # it may still be on its way
            if str(exc) != problem:
                problem = str(exc)
                dispatcher.note(problem)
    return None


def _run(loop: ServerLoop, operator: OperatorAccess, *, is_once: bool, out: Path) -> None:
    """Run a federation and write its report to `out`, then go on listening, unless `is_once`.

    Ends at the operator's wish. Raises BrokerRefused.
    """
    dispatcher = loop.dispatcher
    ended_s, reported = 0.0, None
    while operator.goes_on():
        loop.step(BUNDLE_S)
        now_s = time.monotonic()
        if loop.finished is not None and reported is None:
            reported = dispatcher.energy_reports
            dispatcher.note(f"report: {write_report(out, dispatcher.journal, dispatcher.blobs)}")
            ended_s = time.monotonic()
            if not is_once:
                dispatcher.note("the server goes on listening: Ctrl-C ends it, --new begins another federation")
        if reported is None or now_s - ended_s < LINGER_S:
            continue
        if dispatcher.energy_reports != reported:  # the last round's uploads, which devices have reported since
            reported, ended_s = dispatcher.energy_reports, now_s
            write_report(out, dispatcher.journal, dispatcher.blobs)
        if is_once and dispatcher.outgoing.is_empty:
            return


def _watcher(stack: contextlib.ExitStack, *, is_quiet: bool) -> Watcher:
    if is_quiet or not sys.stdout.isatty():
        return PlainView()
    screen = LiveView()
    screen.start()
    stack.callback(screen.stop)
    return screen


def _builder(config: ServerConfig) -> ArtifactBuilder | None:
    """Return the builder of ONNX Runtime training artifacts, where its Python is known. Raises ConfigInvalid."""
    if config.ort_training.python is None:
        return None
    if not config.ort_training.python.is_file():
        raise ConfigInvalid(
            f"ort_training.python: {config.ort_training.python} does not exist: "
            "make the environment with `make venv-ort-training`"
        )
    return ArtifactBuilder(
        python=config.ort_training.python.absolute(),
        bundle=config.bundle_path,
        folder=config.state / ORT_TRAINING,
        limit_s=config.ort_training.limit_s,
    )


def _encoder(config: ServerConfig, link: Link) -> EncoderSupervisor | None:
    """Return the supervisor of the encoder server, for split learning. Raises ConfigInvalid."""
    if not config.is_apart:
        return None
    if find_spec("onnxruntime") is None:
        raise ConfigInvalid(
            "split_learning.encoder: to compute the encoder, the server needs onnxruntime: pip install '.[board]'"
        )
    bundle, threads = config.bundle_path, config.split_learning.threads or None
    return EncoderSupervisor(
        lambda: EncoderServerProcess.of_bundle(bundle, threads, config.split_learning.provider, link.interrupt)
    )


def _is_bundle(folder: Path) -> bool:
    return (folder / bundle_folder.MANIFEST).is_file()


def _federation(config: ServerConfig, dispatcher: Dispatcher, key: Ed25519PrivateKey) -> Federation:
    bundle = bundle_folder.read_folder(config.bundle_path)
    config.check_reconstruction(bundle)
    return Federation(
        journal=dispatcher.journal,
        blobs=dispatcher.blobs,
        uploads=dispatcher.uploads,
        bundle=bundle,
        folder=config.bundle_path,
        key=key,
        terms=config.terms(bundle),
    )


@contextlib.contextmanager
def _embedded(
    config: ServerConfig, authorizer: TokenAuthorizer, folder: StateFolder, watch: RefusalWatch, say: Say
) -> Iterator[tuple[Link, Stats]]:
    """Start the broker and say how to join; give the server's link to it, and its counters."""
    own = None
    if config.broker.is_tls and config.broker.certificate is None:
        certificates = Certificates(config.state)
        own = certificates.server(_names(config))
        if fault := certificates.clock_fault():
            say(f"WARNING: {fault}")
    broker = EmbeddedBroker(
        authorizer,
        limits=config.broker.limits,
        on_handshake_failed=watch.add,
        certificate_file=config.broker.certificate if own is None else own.certificate,
        key_file=config.broker.key if own is None else own.key,
    )
    port = broker.start(config.broker.host, config.broker.port, search=PORT_SEARCH)
    try:
        if config.broker.port not in {0, port}:
            say(f"port {config.broker.port} is in use: {port} is taken instead")
        scheme = "mqtts" if config.broker.is_tls else "mqtt"
        url = f"{scheme}://{own_address(config.broker.host)}:{port}"
        folder.set_url(url, certificate="other" if own is None else "own")
        if config.broker.tls == "insecure":
            say("INSECURE (broker.tls): tokens and weights cross the network in the clear, for anyone to take")
        say(f"federation {config.federation!r} listens on {config.broker.host}:{port}; state in {config.state}")
        _say_how_to_join(url, config, say)
        link = broker.link()
        renewal = _Renewal(broker, config) if own is not None else None
        try:
            yield link, broker.stats
        finally:
            if renewal is not None:
                renewal.stop()
            link.close()
    finally:
        broker.stop()


def _authorizer(config: ServerConfig, key: Ed25519PrivateKey, watch: RefusalWatch) -> TokenAuthorizer:
    enrolments = Enrolments(config.state)
    return TokenAuthorizer(
        key.public_key(),
        config.federation,
        now=time.time,
        is_current=enrolments.is_current,
        on_login=partial(_on_login, AuditLog(config.state), watch),
        life_s=config.broker.token_s,
        has_key=enrolments.has_key,
    )


def _on_login(audit: AuditLog, watch: RefusalWatch, name: str, why: str | None) -> None:
    watch.add(name, why)
    if why is None:
        audit.add("connected", device=name)
    else:
        audit.add("refused", device=name, why=why)


def _names(config: ServerConfig) -> set[str]:
    """Return the names and addresses of this machine that its certificate is for."""
    names = {"localhost", "127.0.0.1", socket.gethostname(), own_address(config.broker.host)}
    return names | set(config.broker.host_names)


class _Renewal:
    """Makes the broker's certificate again while the server runs, looking once in RENEWAL_S."""

    def __init__(self, broker: EmbeddedBroker, config: ServerConfig) -> None:
        self._broker, self._config = broker, config
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(RENEWAL_S):
            self._look()

    def _look(self) -> None:
        try:
            made = Certificates(self._config.state).server(_names(self._config))
            if made.is_new:
                self._broker.renew(made.certificate, made.key)
        except (OSError, CertificatesInvalid, BrokerNotStarted) as exc:
            _LOG.warning("the certificate could not be made again: %s", exc)


@contextlib.contextmanager
def _external(
    config: ServerConfig,
    key: Ed25519PrivateKey,
    folder: StateFolder,
    say: Say,
    *,
    url: str,
    token: str | None,
    ca_file: Path | None,
) -> Iterator[Link]:
    """Connect to a broker that somebody else runs."""
    where = BrokerUrl.parse(url)
    if not where.tls and not is_loopback(where.host) and config.broker.tls != "insecure":
        raise ConfigInvalid(
            f"{url} is without TLS, so weights would cross the network in the clear: write mqtts://, or allow it by "
            "--tls insecure"
        )

    def password() -> str:
        return token or tokens.issue(key, name=SERVER, federation=config.federation, role="server", lifetime_s=TOKEN_S)

    link = MqttLink(
        url,
        client_id=f"{SERVER}/{config.federation}",
        username=SERVER,
        password=password,
        ca_file=ca_file,
        clean_session=True,
        ends=BROKER,
    )
    is_own = ca_file is not None and ca_file.read_text() == Certificates(config.state).ca_pem()
    folder.set_url(url, certificate="own" if is_own else "other")
    say(f"federation {config.federation!r} on the broker at {url}; state in {config.state}")
    if _lets_strangers_in(url, ca_file):
        say(
            "WARNING: this broker lets anybody in: who does can read weights and make devices look offline, though not "
            "speak for them; `broker-config` writes a configuration that does not"
        )
    _say_how_to_join(url, config, say)
    try:
        yield link
    finally:
        link.close()


def _lets_strangers_in(url: str, ca_file: Path | None) -> bool:
    """Return whether a broker takes a connection by a name and a password that somebody has made up."""
    name = f"stranger-{secrets.token_hex(8)}"
    link = MqttLink(url, client_id=name, username=name, password=name, ca_file=ca_file, clean_session=True)
    try:
        return isinstance(link.receive(STRANGER_S), Connected)
    finally:
        link.close(linger_s=0.0)


def _say_how_to_join(url: str, config: ServerConfig, say: Say) -> None:
    state = "" if config.state == ServerConfig().state else f" --state {config.state}"
    federation = "" if config.federation == ServerConfig().federation else f" --federation {config.federation}"
    command = f"python -m broker_server enrol NAME --out agent.toml{state}{federation}"
    say(f"a device joins with a file of its own, made by: {command}")
    say(f"  and, on the device: python -m edge_runtime run --config agent.toml   (it connects to {url})")
