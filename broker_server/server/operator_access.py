"""An operator's access to a running server, put together: desk, control socket, and metrics where they are wanted."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

from broker_server.operator.control_socket import ControlSocket
from broker_server.server.audit import AuditLog
from broker_server.server.config import ServerConfig
from broker_server.server.desk import Desk
from broker_server.server.dispatcher import Dispatcher
from broker_server.server.enrolments import Enrolments
from broker_server.server.refusal_watch import RefusalWatch
from devices.cli.settings import ConfigInvalid
from edge_runtime.wire.link import Link
from edge_runtime.wire.mqtt import is_loopback


class OperatorAccess:
    """The desk, and the socket by which commands reach it, where there is one."""

    def __init__(self, desk: Desk, control: ControlSocket | None) -> None:
        self.desk, self._control = desk, control

    def goes_on(self) -> bool:
        """Answer what was asked since; return whether the server goes on."""
        if self._control is not None:
            self._control.answer_all(self.desk.answer)
        return not self.desk.is_stopping


@contextlib.contextmanager
def operator_access(
    config: ServerConfig,
    dispatcher: Dispatcher,
    link: Link,
    audit: AuditLog,
    *,
    refused: Callable[[], Mapping[str, int]],
    watch: RefusalWatch,
) -> Iterator[OperatorAccess]:
    """Give access until the end of the block. Raises ConfigInvalid, MetricsUnavailable."""
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
        desk = Desk(
            dispatcher,
            federation=config.federation,
            enrolments=Enrolments(config.state),
            audit=audit,
            refused=refused,
            watch=watch,
            metrics=metrics,
        )
        control = ControlSocket(config.state, link.interrupt)
        try:
            control.start()
        except OSError as exc:  # a folder on a file system without sockets
            dispatcher.note(
                f"{config.state} takes no socket, so `status` and other commands find no server here: {exc}"
            )
            yield OperatorAccess(desk, None)
            return
        stack.callback(control.close)
        yield OperatorAccess(desk, control)
