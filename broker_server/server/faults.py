"""What a federation's server can fail by, and the exit code of each."""

from broker_server.grouping.search import SplitImpossible
from broker_server.mqtt.broker import BrokerNotStarted
from broker_server.operator.client import ServerNotRunning
from broker_server.report.build import ReportImpossible
from broker_server.rounds.federation import FederationChanged, StateDamaged
from broker_server.rounds.journal import JournalInvalid
from broker_server.server.brokers.access import BrokerUnfit
from broker_server.server.certificates import CertificatesInvalid
from broker_server.server.dispatcher import BrokerRefused
from broker_server.server.enrol import EnrolmentRefused
from broker_server.server.keys import KeyInvalid
from broker_server.server.operator_command import ActRefused
from broker_server.server.state import StateBusy, StateMissing
from broker_server.server.state_check import BackupImpossible
from devices.cli.run import BAD_INPUT, FAILED, UNAVAILABLE, USAGE
from edge_runtime.wire.broker_url import LinkInvalid
from edge_runtime.wire.errors import BundleInvalid, TensorsInvalid, TokenRefused

FAULTS: dict[type[Exception], int] = {
    BrokerUnfit: USAGE,
    EnrolmentRefused: USAGE,
    FederationChanged: USAGE,
    TokenRefused: USAGE,
    LinkInvalid: USAGE,
    KeyInvalid: BAD_INPUT,
    BackupImpossible: BAD_INPUT,
    CertificatesInvalid: BAD_INPUT,
    JournalInvalid: BAD_INPUT,
    StateDamaged: BAD_INPUT,
    StateMissing: BAD_INPUT,
    BundleInvalid: BAD_INPUT,
    SplitImpossible: BAD_INPUT,
    TensorsInvalid: BAD_INPUT,
    ReportImpossible: BAD_INPUT,
    StateBusy: UNAVAILABLE,
    BrokerNotStarted: UNAVAILABLE,
    BrokerRefused: UNAVAILABLE,
    ServerNotRunning: UNAVAILABLE,
    ActRefused: FAILED,
    OSError: UNAVAILABLE,
}
