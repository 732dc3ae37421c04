"""What a device can be doing with its plan, and what leads from one to the other: the one table of it.

idle ─plan─► looking ─wanted─► fetching ─whole─► looking ─ready─► working ─done─► announcing ─ack─► idle
└──────────────ready, old work not stopped─► waiting ─stopped─► working
"""

from enum import Enum, auto
from typing import Literal


class Activity(Enum):
    """What a device is doing with its plan."""

    IDLE = auto()
    LOOKING = auto()
    """The caller was asked what the plan still needs."""
    FETCHING = auto()
    WAITING = auto()
    """Everything is here, the superseded work has not stopped yet."""
    WORKING = auto()
    ANNOUNCING = auto()
    ENDED = auto()


Event = Literal[
    "plan", "repeated", "wanted", "ready", "queued", "whole", "stopped", "done", "refused", "ack", "finished"
]

TRANSITIONS: dict[Activity, dict[Event, Activity]] = {
    Activity.IDLE: {
        "plan": Activity.LOOKING,
        "repeated": Activity.ANNOUNCING,
        "ack": Activity.IDLE,
        "finished": Activity.ENDED,
    },
    Activity.LOOKING: {
        "plan": Activity.LOOKING,
        "wanted": Activity.FETCHING,
        "ready": Activity.WORKING,
        "queued": Activity.WAITING,
        "refused": Activity.IDLE,
        "finished": Activity.ENDED,
    },
    Activity.FETCHING: {
        "plan": Activity.LOOKING,
        "whole": Activity.LOOKING,
        "refused": Activity.IDLE,
        "finished": Activity.ENDED,
    },
    Activity.WAITING: {"plan": Activity.LOOKING, "stopped": Activity.WORKING, "finished": Activity.ENDED},
    Activity.WORKING: {
        "plan": Activity.LOOKING,
        "done": Activity.ANNOUNCING,
        "refused": Activity.IDLE,
        "finished": Activity.ENDED,
    },
    Activity.ANNOUNCING: {"plan": Activity.LOOKING, "ack": Activity.IDLE, "finished": Activity.ENDED},
    Activity.ENDED: {},
}
