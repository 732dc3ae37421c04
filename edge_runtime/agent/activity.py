"""The activities of a device with its plan, and the one table of transitions between them.

idle ─plan─► checking ─start─► working ─done─► announcing ─ack─► idle
             checking ─files_missing─► downloading ─files_complete─► checking
             checking ─wait─► waiting ─stopped─► working
"""

from enum import Enum, auto
from typing import Literal


class Activity(Enum):
    """A device's activity with its plan."""

    IDLE = auto()
    CHECKING = auto()
    """The caller was asked which files of the plan are missing."""
    DOWNLOADING = auto()
    WAITING = auto()
    """All files are here, but the superseded work has not stopped yet."""
    WORKING = auto()
    ANNOUNCING = auto()
    ENDED = auto()


Event = Literal[
    "plan",
    "repeated_plan",
    "files_missing",
    "files_complete",
    "start",
    "wait",
    "stopped",
    "done",
    "refused",
    "ack",
    "finished",
]

TRANSITIONS: dict[Activity, dict[Event, Activity]] = {
    Activity.IDLE: {
        "plan": Activity.CHECKING,
        "repeated_plan": Activity.ANNOUNCING,
        "ack": Activity.IDLE,
        "finished": Activity.ENDED,
    },
    Activity.CHECKING: {
        "plan": Activity.CHECKING,
        "files_missing": Activity.DOWNLOADING,
        "start": Activity.WORKING,
        "wait": Activity.WAITING,
        "refused": Activity.IDLE,
        "finished": Activity.ENDED,
    },
    Activity.DOWNLOADING: {
        "plan": Activity.CHECKING,
        "files_complete": Activity.CHECKING,
        "refused": Activity.IDLE,
        "finished": Activity.ENDED,
    },
    Activity.WAITING: {"plan": Activity.CHECKING, "stopped": Activity.WORKING, "finished": Activity.ENDED},
    Activity.WORKING: {
        "plan": Activity.CHECKING,
        "done": Activity.ANNOUNCING,
        "refused": Activity.IDLE,
        "finished": Activity.ENDED,
    },
    Activity.ANNOUNCING: {"plan": Activity.CHECKING, "ack": Activity.IDLE, "finished": Activity.ENDED},
    Activity.ENDED: {},
}
