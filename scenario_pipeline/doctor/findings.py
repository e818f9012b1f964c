"""What `doctor` finds, as values.

Belongs here: a finding, the status of many of them, and a limit to waiting for one. Does not belong here: the checks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, text

from scenario_pipeline.settings import Settings
from scenario_pipeline.storage.source import Access

# No check takes longer on a healthy server.
STATEMENT_SECONDS = 5.0
# A finding takes seconds at most; a server that says nothing for so long says nothing at all.
SILENCE_SECONDS = 20.0
YOUR_OWN_TABLES = "define the view as docs/how-to/your-own-tables.md shows"


class Status(StrEnum):
    """What came of a check."""

    OK = "ok"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """What was found, in one sentence.

    Attributes:
        check: name of the check, the same in every release.
        status: whether something must be fixed, or could not be checked.
        finding: one sentence, without a secret.
        remedy: the command that fixes it, or None where there is nothing to fix.
    """

    check: str
    status: Status
    finding: str
    remedy: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """What a check of the database is given.

    Attributes:
        connection: inside a read-only transaction.
        settings: of this installation.
        role: the role that the pipeline connects as, quoted where SQL needs it.
        rights_remedy: what gives that role the rights of a scheduler.
        access: how that role reads the source.
        last_due: when the schedule of all scenarios last asked for a run that should be over by now, or None where
            that is unknown.
    """

    connection: Connection
    settings: Settings
    role: str
    rights_remedy: str
    access: Access
    last_due: datetime | None = None

    def scalar(self, statement: str, **parameters: object) -> Any:
        """Return the one value of a statement."""
        return self.connection.execute(text(statement), parameters).scalar_one()


def overall(findings: Sequence[Finding]) -> Status:
    """Return the status of all findings: a problem outweighs a check that could not be made."""
    found = {finding.status for finding in findings}
    return next((status for status in (Status.PROBLEM, Status.UNKNOWN) if status in found), Status.OK)


def in_time(name: str, findings: Iterator[Finding], seconds: float = SILENCE_SECONDS) -> Iterator[Finding]:
    """Yield findings as they come, and an unknown one instead of waiting for ever.

    A server that stops answering within a statement keeps its client waiting without end: what bounds a statement is
    the server's own clock.
    """
    found: queue.SimpleQueue[Finding | BaseException | None] = queue.SimpleQueue()

    def look() -> None:
        try:
            for finding in findings:
                found.put(finding)
            found.put(None)
        except BaseException as exc:  # noqa: BLE001 - raised again below, where somebody waits for it
            found.put(exc)

    threading.Thread(target=look, daemon=True).start()
    while True:
        try:
            finding = found.get(timeout=seconds)
        except queue.Empty:
            sentence = f"The server has not answered for {seconds:.0f} seconds."
            yield Finding(name, Status.UNKNOWN, sentence, "scenario-pipeline doctor, once more")
            return
        if finding is None:
            return
        if isinstance(finding, BaseException):
            raise finding
        yield finding


def as_sentence(words: str) -> str:
    """Return words with a capital letter and a full stop."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."
