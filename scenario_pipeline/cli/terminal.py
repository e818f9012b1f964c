"""The terminal's manners, the same for all commands.

Belongs here: sentences, announcements and progress on stderr, and exit statuses. Does not belong here: what a command
does, or a library that takes time to import: each `--help` pays it.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, NoReturn, ParamSpec, TextIO, TypeVar

import click

from scenario_pipeline.failures import ErrorInfo, SystemicError, UserError

EXIT_COMPLETED, EXIT_FAILED, EXIT_PARTIAL = 0, 1, 3

P = ParamSpec("P")
R = TypeVar("R")


def one_sentence(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a user's mistake, or a database that says no, into one sentence on stderr and an exit status."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as exc:
            stop(str(exc), exc.exit_status)
        except SystemicError as exc:
            stop(f"{exc.info.error_message}{_advice(exc.info)}.", EXIT_FAILED)
        except OSError as exc:
            stop(f"The operating system refused: {_classified(exc).error_message}.", EXIT_FAILED)
        except _database_errors() as exc:
            failure = _classified(exc)
            stop(f"The database could not be used: {failure.error_message}{_advice(failure)}.", EXIT_FAILED)

    return wrapped


def _database_errors() -> tuple[type[Exception], ...]:
    """Python asks for these only once something was raised: a command that ends well imports no driver for them."""
    from psycopg import Error
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, Error


def _classified(exc: Exception) -> ErrorInfo:
    from scenario_pipeline.errors import classify

    return classify(exc)


def _advice(failure: ErrorInfo) -> str:
    """Say who may do what this role may not: a scheduler's URL is the usual one to have set."""
    from scenario_pipeline.storage.roles import OWNER

    return (
        f"; connect as the owner of the schema ({OWNER}) or see scenario-pipeline doctor"
        if failure.sqlstate == "42501"
        else ""
    )


def stop(sentence: str, status: int) -> NoReturn:
    """End the command with a sentence on stderr and this exit status."""
    echo(f"Error: {sentence}")
    sys.exit(status)


def echo(text: str) -> None:
    """Write a line to stderr, if there is one; stdout belongs to machine output.

    A line that cannot be written must not decide how a run ends.
    """
    if sys.stderr is None:
        return
    try:
        click.echo(text, err=True)
    except (OSError, ValueError):
        # Python would flush it once more at the end, fail again, and exit with status 120.
        sys.stderr = None


def announce(step: str, *, also_in_a_log: bool = False) -> None:
    """Say what the command does now, to a person who would otherwise look at nothing for seconds.

    Args:
        step: what is done, such as `Loading Dagster`.
        also_in_a_log: say it even where stderr is no terminal: for what happens once and takes long.
    """
    if also_in_a_log or _is_terminal():
        echo(f"{step} ...")


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return `1 mentor`, `2 mentors`, `2 activities`: a number and its noun, whose plural is `many` or has an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


class Progress:
    """Bars on a terminal, one for each phase; nothing where there is no terminal."""

    def __init__(self, terminal: TextIO | None) -> None:
        self._terminal = terminal
        self._bar: Any = None

    def __call__(self, phase: str, amount: int, total: int | None = None) -> None:
        """Show how far a phase is.

        Args:
            phase: what is being done; another one begins a new bar.
            amount: how much is done since the phase began.
            total: how much there is to do, or None where nobody knows yet.
        """
        if self._terminal is None or total == 0:
            return
        try:
            if self._bar is None or self._bar.label != phase:
                self.finish()
                # Without a length click moves a mark to and fro, beside the amount.
                self._bar = click.progressbar(
                    itertools.count(), length=total, label=phase, show_pos=True, file=self._terminal
                )
                self._bar.__enter__()
            self._bar.length = total
            self._bar.update(amount - self._bar.pos)
            if amount == total:
                # What comes next, such as an event on the same terminal, begins on a line of its own.
                self.finish()
        except (OSError, ValueError):  # the terminal is gone
            self._terminal = self._bar = None

    def finish(self) -> None:
        """End the line of the present bar."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            bar.__exit__(None, None, None)


@contextmanager
def progress() -> Iterator[Progress]:
    """Show how far something long is, if stderr is a terminal.

    The terminal is kept by a descriptor of its own, since Dagster redirects stderr to a file while a step runs.
    """
    with ExitStack() as stack:
        terminal = stack.enter_context(os.fdopen(os.dup(sys.stderr.fileno()), "w")) if _is_terminal() else None
        shown = Progress(terminal)
        try:
            yield shown
        finally:
            shown.finish()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
