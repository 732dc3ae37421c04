"""The terms that a federation begins with: what is trained, how, and who keeps what."""

from dataclasses import dataclass

from broker_server.aggregation.linear import LinearRule
from broker_server.aggregation.personal import PersonalTerms
from broker_server.aggregation.rules import Aggregation
from broker_server.aggregation.staleness import Discount
from broker_server.rounds.encoder_process import EncoderRounds
from broker_server.strategies.planner import Strategy
from edge_runtime.wire.compression import Updates
from edge_runtime.wire.messages import Training
from edge_runtime.wire.names import Tasks


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms that a federation begins with."""

    tasks: Tasks
    strategy: Strategy
    training: Training
    """The devices' training in a first round that probes."""
    updates: Updates
    aggregation: Aggregation
    max_age: int = 0
    """How many versions behind the weights may be that an update began from; more than 0 in buffered rounds alone."""
    discount: Discount = "none"
    settings: str
    """The settings that must not change once it has begun, as JSON."""
    shared_encoder: EncoderRounds | None = None
    """For split learning: devices then receive the stem and the heads alone."""
    personal: PersonalTerms
    """What each device has of its own."""
    linear: LinearRule | None = None
    """The rule of linear models; None for models of graphs."""
