"""The failure taxonomy: what can fail, as values and exceptions of our own.

Belongs here: the closed set of error types (contract section 5), a failure as a value, and the exceptions that carry
one. Does not belong here: foreign errors (`errors`), or a library that is slow to import: every command would pay for
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scenario_pipeline.sanitiser import own_words
from scenario_pipeline.sqlstates import is_of_a_row


class ErrorType(StrEnum):
    """Why an evaluation or a run failed: a closed set (contract section 5)."""

    NETWORK = "network_error"
    TIMEOUT = "timeout_error"
    EVALUATION_LOGIC = "evaluation_logic_error"
    DATABASE = "database_error"


@dataclass(frozen=True)
class ErrorInfo:
    """A failure as a value.

    Attributes:
        error_type: one of the four types.
        error_message: one sentence in our own words, with names from closed sources only. It also reaches places that
            the logger does not guard: the ledger, step outputs and Dagster's events. Code that puts foreign text into
            it must sanitise that text first.
        sqlstate: the five-character SQLSTATE, if the database gave one.
    """

    error_type: ErrorType
    error_message: str
    sqlstate: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "error_message", own_words(self.error_message))

    @property
    def is_about_a_row(self) -> bool:
        """Whether the database refused a value, so that other mentors of the page may still be evaluated.

        By the tables of `sqlstates`, every other failure is systemic (contract section 6).
        """
        return self.sqlstate is not None and is_of_a_row(self.sqlstate)

    @property
    def is_worth_a_retry(self) -> bool:
        """Whether the same transaction may succeed if repeated at once (deadlock, serialization failure)."""
        return self.sqlstate in {"40P01", "40001"}

    @property
    def is_worth_waiting_for(self) -> bool:
        """Whether the database may be back soon: it was out of reach, or had no connection to spare (53300)."""
        return self.error_type is ErrorType.NETWORK or self.sqlstate == "53300"


class UserError(Exception):
    """A mistake that one clear sentence explains: what is wrong, where, and what to do.

    Args:
        message: the sentence; it must not hold a personal value or a secret.
        exit_status: exit status of the command: 2 for wrong usage, 1 for anything else (contract section 5).
    """

    def __init__(self, message: str, *, exit_status: int = 2) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class SystemicError(Exception):
    """A failure that concerns the run and not a mentor; carries what the closing events report.

    Raised `from None` on purpose: Dagster stores the text of every chained exception.
    """

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.error_message)
        self.info = info


class BudgetSpentError(Exception):
    """The time budget ended during a page; the page was rolled back, and the next run evaluates it."""
