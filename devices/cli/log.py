"""Logging of every command: to standard error, a line for each record, for people or as JSON for programs."""

# coverage: every branch

import datetime as dt
import logging
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from devices.cli.text import MAX_SHOWN, printable

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["human", "json"]


class LogSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a process logs, and how."""

    level: Annotated[LogLevel, Meta(description="the least that is worth a line")] = "info"
    format: Annotated[
        LogFormat, Meta(description="human: lines for people; json: all that the process says, an object a line")
    ] = "human"


class HumanFormatter(logging.Formatter):
    """A formatter whose every record is one line; the lines of a traceback below it are set in."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        record.message = printable(record.message, MAX_SHOWN)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        """Return the lines of a traceback."""
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]  # as logging passes it
        return "\n".join(f"    {printable(line, MAX_SHOWN)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """A formatter whose every record is one JSON object: at, level, from, text, the record's `fields`, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's object."""
        at = dt.datetime.fromtimestamp(record.created, dt.timezone.utc).isoformat(timespec="milliseconds")
        found: dict[str, object] = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "from": record.name,
            "text": printable(record.getMessage(), MAX_SHOWN),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            found["traceback"] = [printable(line, MAX_SHOWN) for line in lines]
        return msgspec.json.encode(found).decode()


def is_json() -> bool:
    """Return whether this process says all that it says as JSON."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def log_to_stderr(settings: LogSettings, form: str) -> None:
    """Log to standard error from now on, unless the process logs elsewhere already. `form` is of lines for people.

    Called again, the new settings hold.
    """
    root = logging.getLogger()
    formatter = JsonFormatter() if settings.format == "json" else HumanFormatter(form)
    ours = [each for each in root.handlers if isinstance(each.formatter, HumanFormatter | JsonFormatter)]
    if not root.handlers:
        ours = [logging.StreamHandler()]
        root.addHandler(ours[0])
    for handler in ours:
        handler.setFormatter(formatter)
        root.setLevel(settings.level.upper())
