"""What a run says while it works: which case of how many, the time that is left, and the log as text or as JSON lines."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any, Literal

from ..errors import printable
from ..stages import Stage, stage_line

LogFormat = Literal["text", "json"]

logger = logging.getLogger("process")


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, message, and the fields that `fields` gave to the record."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(document | getattr(record, "fields", {}))


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` argument of a logger's method: what `JsonLines` writes beside the message."""
    return {"fields": values}


def set_up_logging(log_format: LogFormat) -> None:
    """Log to stdout, whatever it can encode; a log that cannot be written, as on a full disk, is no reason to lose a result."""
    logging.raiseExceptions = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.captureWarnings(True)


def log_stage(stage: Stage, seconds: float) -> None:
    """Log a stage that has ended, with its seconds."""
    logger.info("%s", stage_line(stage, seconds), extra=fields(stage=str(stage), seconds=round(seconds, 3)))


def report(text: str) -> None:
    """Print the run's last words, and give up stdout where nobody reads it any more."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at the end


class Progress:
    """Says which case is being scored, and from the cases before it how long the rest will take."""

    def __init__(self, cases: int, to_score: int) -> None:
        """
        Args:
            cases: of the run.
            to_score: those of them that an earlier run has not finished.
        """
        self._cases = cases
        self._left = to_score
        self._scored = 0
        self._start = time.perf_counter()

    def begin(self, number: int, entity: str) -> None:
        """Log that a case is begun; the first has number 1. A case alone is named, and nothing more."""
        values: dict[str, Any] = {"entity": entity, "case": number, "cases": self._cases}
        name = printable(entity)
        if self._cases > 1:
            name = f"case {number} of {self._cases}: {name}"
        if self._scored:
            seconds = (time.perf_counter() - self._start) / self._scored * self._left
            values["seconds_left"] = round(seconds)
            name = f"{name}, {time_left(seconds)}"
        logger.info("%s", name, extra=fields(**values))

    def end(self) -> None:
        """Count the case that was begun as done."""
        self._scored += 1
        self._left -= 1


def time_left(seconds: float) -> str:
    """A time in words, to the minute; to the hour from a day on."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than 1 min left"
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours} h left"
    return f"{hours} h {minutes} min left" if hours else f"{minutes} min left"
