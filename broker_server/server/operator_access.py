"""An operator's access to a running server, put together: desk, control socket, and metrics where they are wanted."""

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from broker_server.operator.control_socket import ControlSocket
from broker_server.operator.questions import Questions
from broker_server.server.audit import AuditLog
from broker_server.server.certificates import Certificates
from broker_server.server.config import ServerConfig
from broker_server.server.desk import Desk
from broker_server.server.dispatcher import Dispatcher
from broker_server.server.enrolments import Enrolments
from broker_server.server.own_broker import certificate_names
from broker_server.server.refusal_watch import RefusalWatch
from broker_server.server.signed_link import SignedServerLink
from devices.cli.settings import ConfigInvalid
from edge_runtime.wire.broker_url import is_loopback


class OperatorAccess:
    """The desk, and the questions that come to it from other threads."""

    def __init__(self, desk: Desk, questions: Questions) -> None:
        self.desk, self._questions = desk, questions

    def goes_on(self) -> bool:
        """Answer what was asked since; return whether the server goes on."""
        self._questions.answer_all(self.desk.answer)
        return not self.desk.is_stopping


@contextlib.contextmanager
def operator_access(
    config: ServerConfig,
    dispatcher: Dispatcher,
    link: SignedServerLink,
    audit: AuditLog,
    watch: RefusalWatch,
    *,
    report: Path,
) -> Iterator[OperatorAccess]:
    """Give access until the end of the block; `report` is the folder where the report goes.

    Raises ConfigInvalid, MetricsUnavailable, PageUnavailable, CertificatesInvalid.
    """
    with contextlib.ExitStack() as stack:
        metrics = None
        if config.metrics.port is not None:
            if find_spec("prometheus_client") is None:
                raise ConfigInvalid("metrics.port: metrics need prometheus-client: pip install '.[server]'")
            from broker_server.operator import metrics as prometheus

            metrics = prometheus.Metrics(watch.stats, has_devices=config.metrics.devices)
            stack.callback(prometheus.serve(metrics, config.metrics.host, config.metrics.port))
            who = "" if is_loopback(config.metrics.host) else ": whoever reaches that address may read them"
            dispatcher.note(f"metrics are at http://{config.metrics.host}:{config.metrics.port}/metrics{who}")
        questions = Questions(link.interrupt)
        if config.page.port is not None:
            stack.callback(_page(config, config.page.port, dispatcher, questions, report))
        desk = Desk(
            dispatcher,
            federation=config.federation,
            enrolments=Enrolments(config.state),
            audit=audit,
            refused=lambda: link.refused,
            watch=watch,
            metrics=metrics,
        )
        control = ControlSocket(config.state, questions)
        try:
            control.start()
            stack.callback(control.close)
        except OSError as exc:  # a folder on a file system without sockets
            dispatcher.note(
                f"{config.state} takes no socket, so `status` and other commands find no server here: {exc}"
            )
        stack.callback(questions.close)
        yield OperatorAccess(desk, questions)


def _page(
    config: ServerConfig,
    port: int,
    dispatcher: Dispatcher,
    questions: Questions,
    report: Path,
) -> Callable[[], None]:
    """Serve the live page; return what ends it."""
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise ConfigInvalid("page.port: the page needs starlette and uvicorn: pip install '.[server]'")
    from broker_server.operator.page import server as page

    host = config.page.host
    is_local = is_loopback(host)
    certificate = None
    if not is_local:
        certificate = _certificate(config)
    stop = page.serve(
        questions,
        state=config.state,
        report=report,
        host=host,
        port=port,
        is_local=is_local,
        certificate=certificate,
    )
    what = "acts need" if is_local else "it needs"
    scheme = "http" if is_local else "https"
    dispatcher.note(f"the page is at {scheme}://{host}:{port}/; {what} the token in {config.state / page.TOKEN}")
    return stop


def _certificate(config: ServerConfig) -> tuple[Path, Path]:
    """Return the files of the broker's certificate and its key."""
    if config.broker.certificate is not None and config.broker.key is not None:
        return config.broker.certificate, config.broker.key
    own = Certificates(config.state).server(certificate_names(config))
    return own.certificate, own.key
