"""A running server: state folder, broker, loop and view put together, until it is stopped."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker_server.aggregation.sums import LocalSums, ShardedSums, Sums
from broker_server.report import build as reports
from broker_server.rounds.coordinator import Coordinator
from broker_server.rounds.encoder_process import EncoderSupervisor
from broker_server.rounds.federation import Federation
from broker_server.rounds.journal import FederationJournal
from broker_server.rounds.ort_training_process import ArtifactBuilder
from broker_server.rounds.worker_pool import ray_workers
from broker_server.server.audit import AuditLog
from broker_server.server.config import ServerConfig
from broker_server.server.device_certificates import DeviceCertificates
from broker_server.server.dispatcher import Dispatcher
from broker_server.server.enrolments import Enrolments
from broker_server.server.keys import load_or_create, retired_keys, signing_key
from broker_server.server.log_view import LogView
from broker_server.server.loop import ServerLoop, Watcher, Watchers
from broker_server.server.operator_access import OperatorAccess, operator_access
from broker_server.server.other_broker import other_broker
from broker_server.server.own_broker import OwnBroker, own_broker
from broker_server.server.progress import LiveView, PlainView
from broker_server.server.receipts import Receipts
from broker_server.server.refusal_watch import RefusalWatch
from broker_server.server.refusals import RefusalLine
from broker_server.server.run_writer import ThreadedWriter
from broker_server.server.signed_link import Renewal, SignedServerLink
from broker_server.server.state import COUNTER, StateFolder
from devices.cli.settings import ConfigInvalid
from edge_runtime.wire import bundle_folder
from edge_runtime.wire.blob import BlobStore
from edge_runtime.wire.broker_url import BrokerUrl
from edge_runtime.wire.counter import Counter
from edge_runtime.wire.encoder_pipe import EncoderServerProcess
from edge_runtime.wire.errors import BundleInvalid
from edge_runtime.wire.link import Link
from edge_runtime.wire.topics import Topics

_LOG = logging.getLogger("broker_server")
Say = Callable[[str], None]
MakeSums = Callable[[int], Sums]
LINGER_S = 3.0
"""The time that the last messages of a finished federation get to leave."""
BUNDLE_S = 1.0
"""The time between two looks for a missing bundle."""
ORT_TRAINING = "ort_training"
"""The folder in the state folder where ONNX Runtime training artifacts are made."""


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
    ray: str | None = None,
) -> bool:
    """Serve until stopped, or with `is_once` until the federation has finished; return whether it did as planned.

    With `broker`, a URL, that broker is used and none is started; with `ray`, an address, rounds are aggregated on that
    cluster. Raises ClusterUnavailable, StateBusy, StateDamaged, JournalInvalid,
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
        audit, watch = AuditLog(config.state), RefusalWatch()
        attempted = partial(_attempted, audit, watch)
        own = None
        if broker is None:
            own = stack.enter_context(
                own_broker(config, key, folder, say, on_login=attempted, on_handshake_failed=attempted)
            )
            plain, url, watch.stats = own.link, own.url, own.stats
        else:
            other = other_broker(config, key, folder, say, url=broker, token=token, ca_file=ca_file)
            plain, url = stack.enter_context(other), broker
        _say_how_to_join(url, config, say)
        link = SignedServerLink(
            plain,
            Topics(config.federation),
            key=signing,
            enrolments=Enrolments(config.state),
            counter=Counter(config.state / COUNTER),
            retired=retired_keys(config.state),
            lock_out_clones=config.broker.lock_out_clones,
            renewals=_renewals(config, own, url),
            receipts=Receipts(config.state),
        )
        watcher = LogView() if config.log.format == "json" else _watcher(stack, is_quiet=is_quiet)
        make_sums = _make_sums(stack, ray)
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
            coordinator=Coordinator(config.rounds, journal.hellos(), seed=config.seed, learnt=journal.learnt()),
            show=watcher.note,
            builds_artifacts=builder is not None,
            chunk_bytes=config.broker.chunk_bytes,
            writer=_writer(stack, link),
            enrolled=Enrolments(config.state).current,
        )
        out = report or config.state / "report"
        operator = stack.enter_context(operator_access(config, dispatcher, link, audit, watch, report=out))
        watch.say = partial(_say_refusal, dispatcher, watcher)
        watchers = Watchers(watcher, operator.desk)

        def note(text: str) -> None:
            audit.add("noted", why=text)
            dispatcher.note(text)

        link.note, link.refuse = note, attempted
        audit.add("started")
        stack.callback(audit.add, "stopped")
        is_here = config.bundle is not None or _is_bundle(config.bundle_path)
        federation = (
            _federation(config, dispatcher, signing, make_sums)
            if is_here
            else _await_bundle(config, dispatcher, watchers, signing, operator, make_sums)
        )
        if federation is None:
            return True
        loop = ServerLoop(federation, dispatcher, watchers, builder=builder, encoder=encoder)
        operator.desk.loop = loop
        loop.start()
        _run(loop, operator, is_once=is_once, out=out)
        return not loop.failed


def _renewals(config: ServerConfig, own: OwnBroker | None, url: str) -> list[Renewal]:
    """Return what devices are given; a certificate before the token, with which a limited connection ends."""
    certificates = [DeviceCertificates(config.state)] if BrokerUrl.parse(url).tls else []
    return [*certificates, *([] if own is None else [own.renewal])]


def _attempted(audit: AuditLog, watch: RefusalWatch, who: str, why: str | None) -> None:
    """Take an attempt of somebody to come in or to be heard: why it was refused, or None where it was not."""
    watch.add(who, why)
    if why is None:
        audit.add("connected", device=who)
    else:
        audit.add("refused", device=who, why=why)


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
    config: ServerConfig,
    dispatcher: Dispatcher,
    watcher: Watcher,
    key: Ed25519PrivateKey,
    operator: OperatorAccess,
    make_sums: MakeSums,
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
            return _federation(config, dispatcher, key, make_sums)
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


def _writer(stack: contextlib.ExitStack, link: Link) -> ThreadedWriter:
    writer = ThreadedWriter(link.interrupt)
    stack.callback(writer.close)
    return writer


def _make_sums(stack: contextlib.ExitStack, ray: str | None) -> MakeSums:
    """Return what makes the sums that rounds are folded into. Raises ClusterUnavailable."""
    return LocalSums if ray is None else partial(ShardedSums, executor=stack.enter_context(ray_workers(ray)).executor)


def _is_bundle(folder: Path) -> bool:
    return (folder / bundle_folder.MANIFEST).is_file()


def _federation(
    config: ServerConfig, dispatcher: Dispatcher, key: Ed25519PrivateKey, make_sums: MakeSums
) -> Federation:
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
        make_sums=make_sums,
    )


def _say_how_to_join(url: str, config: ServerConfig, say: Say) -> None:
    state = "" if config.state == ServerConfig().state else f" --state {config.state}"
    federation = "" if config.federation == ServerConfig().federation else f" --federation {config.federation}"
    command = f"python -m broker_server enrol NAME --out agent.toml{state}{federation}"
    say(f"a device joins with a file of its own, made by: {command}")
    say(f"  and, on the device: python -m edge_runtime run --config agent.toml   (it connects to {url})")
