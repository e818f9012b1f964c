"""Where Dagster keeps its records, and how long a run waits for them.

Belongs here: the storage class that `dagster.yaml` names. Does not belong here: what Dagster captures of a run's
output (`defs.instance.captured_output`).
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, Self

import psycopg
from dagster import DagsterEvent
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import DagsterPostgresException, set_pg_statement_timeout
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline import conninfo
from scenario_pipeline.defs.dagster_private import ConfigurableClassData
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError, UserError, classify
from scenario_pipeline.settings import Settings
from scenario_pipeline.storage import database

# How long a run waits for Dagster's database when it is out of reach, once an outage.
OUTAGE_SECONDS = 10.0
RECONNECT_SECONDS = 0.2
# Once it was waited for in vain, how long nobody tries again.
RETRY_SECONDS = 5.0
DAGSTER_CONNECT_SECONDS = 5
# How long one of its statements may take once an earlier one took too long; libpq counts no shorter either.
LEAST_SECONDS = 2
_OUT_OF_REACH = ErrorInfo(ErrorType.NETWORK, "the connection to Dagster's database was refused or lost")


P = ParamSpec("P")


class Patience:
    """How long the process of a run waits for Dagster's database, and what it does without.

    dagster-postgres waits eleven seconds, give or take as many, for each entry that it cannot store. A run stores a few
    before it is torn down: its log was closed long after its time budget, and its process ended a minute late.
    An entry that cannot be stored at all failed the run, although the mentors need none of them. Processes without a
    run, such as the web server and the daemon, are left to dagster-postgres.

    Attributes:
        refusal: why the first entry of the latest run that could not be stored was lost; None if all were stored.
    """

    def __init__(self) -> None:
        self.refusal: ErrorInfo | None = None
        self._executes_a_run, self._is_over = False, True
        self._until: float | None = None
        self._lost_since: float | None = None
        self._given_up_at = self._silent_until = 0.0

    def enter_run(self) -> None:
        """Lose an entry rather than the run, from now until the process ends: the last entries follow the run's end."""
        if self._is_over:
            self.refusal = None
        self._executes_a_run, self._is_over = True, False

    def begin_run(self, time_budget_seconds: float) -> None:
        """Wait for nothing beyond this time budget, which begins now."""
        self.enter_run()
        self._until = time.monotonic() + time_budget_seconds
        self._lost_since = None

    def end_run(self) -> None:
        """Be patient again: a process may live longer than the run it executed.

        Not before the database is back: Dagster stores its last entries about a run after the run's resources are gone.
        """
        self._is_over = True
        if self._lost_since is None:
            self._until = None

    def stored_or_lost(self, store: Callable[P, None], is_of_the_run: Callable[P, bool]) -> Callable[P, None]:
        """Return `store`, whose failure does not end the run of this process.

        Args:
            store: stores one entry.
            is_of_the_run: whether an entry says how the run as a whole fares; others are not tried again soon after
                one that waited in vain.
        """

        @wraps(store)
        def attempt(*args: P.args, **kwargs: P.kwargs) -> None:
            if self._executes_a_run and time.monotonic() < self._silent_until and not is_of_the_run(*args, **kwargs):
                return
            try:
                store(*args, **kwargs)
            except Exception as exc:
                if not self._executes_a_run:
                    raise
                failure = classify(exc)
                self.refusal = self.refusal or failure
                if failure.error_type in (ErrorType.NETWORK, ErrorType.TIMEOUT):
                    self._silent_until = time.monotonic() + RETRY_SECONDS

        return attempt

    def _statement_seconds(self) -> float:
        seconds = OUTAGE_SECONDS if self.refusal is None else LEAST_SECONDS
        left = OUTAGE_SECONDS if self._until is None else self._until - time.monotonic()
        return max(LEAST_SECONDS, min(seconds, left))

    def connect(self, dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
        """Connect as SQLAlchemy would have done (its event `do_connect`).

        Raises:
            SystemicError: the database was waited for long enough; dagster-postgres does not repeat this one.
        """
        connection = self._connected(dialect, arguments, parameters)
        if self._executes_a_run:
            # A table that somebody has locked answers nothing. Dagster's web server sets its own limit in the same way.
            set_pg_statement_timeout(connection, int(self._statement_seconds() * 1000))
        return connection

    def _connected(self, dialect: Any, arguments: Any, parameters: Any) -> Any:
        if self._until is None:
            return dialect.connect(*arguments, **parameters)
        while True:
            now = time.monotonic()
            patience = OUTAGE_SECONDS if self._lost_since is None else self._lost_since + OUTAGE_SECONDS - now
            patience = min(patience, self._until - now)
            if self._lost_since is not None and patience <= 0 and now < self._given_up_at + RETRY_SECONDS:
                raise SystemicError(_OUT_OF_REACH)
            try:
                # A frozen server answers nothing, and each attempt takes all it may.
                seconds = min(max(patience, LEAST_SECONDS), DAGSTER_CONNECT_SECONDS)
                connection = dialect.connect(*arguments, **({"connect_timeout": int(seconds)} | parameters))
            except dialect.loaded_dbapi.OperationalError:
                self._lost_since = self._lost_since or now
            else:
                self._lost_since = None
                if self._is_over:
                    self._until = None
                return connection
            now = time.monotonic()
            if now >= min(self._until, self._lost_since + OUTAGE_SECONDS):
                self._given_up_at = now
                raise SystemicError(_OUT_OF_REACH)
            time.sleep(RECONNECT_SECONDS)


# Process-wide, as a run is.
PATIENCE = Patience()
# Alembic's table without Dagster's: its migrations would stumble over those of another application. Dagster makes its
# tables first, so a database that is just being made is not taken for that.
_IS_ANOTHERS = """
    SELECT to_regclass('alembic_version') IS NOT NULL
        AND to_regclass('runs') IS NULL AND to_regclass('event_logs') IS NULL"""
_ANOTHERS = "Dagster's database holds the tables of another application: give Dagster a database of its own."


class InstanceStorage(DagsterPostgresStorage):
    """Dagster's runs, events and schedules in the database that the settings name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for storage in (self.run_storage, self.event_log_storage, self.schedule_storage):
            engine = storage._engine  # type: ignore[union-attr]  # noqa: SLF001 - there is no other handle
            event.listen(engine, "do_connect", PATIENCE.connect)
            event.listen(engine, "handle_error", _without_its_statement)
        # What Dagster writes while a run goes on.
        events, runs = self._event_log_storage, self._run_storage
        store_event = PATIENCE.stored_or_lost(events.store_event, lambda event: _is_of_the_run(event.dagster_event))
        handle_run_event = PATIENCE.stored_or_lost(runs.handle_run_event, lambda *_: True)
        events.store_event = store_event  # type: ignore[method-assign]
        runs.handle_run_event = handle_run_event  # type: ignore[method-assign]

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Return no options: the environment decides."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:  # noqa: ARG003
        """Find the database, creating it on the scheduler's own server if need be."""
        settings = Settings.from_environment()
        urls = database.locate(settings)
        url = conninfo.psycopg2_url(urls.dagster)
        try:
            if settings.dagster_database_url is None and not urls.embedded:
                database.create_database(urls.scenario, "dagster")
            # Asked here once: dagster-postgres would repeat for seconds what is answered at once.
            with database.session(urls.dagster) as connection:
                is_anothers = connection.execute(_IS_ANOTHERS).fetchone() == (True,)
            if is_anothers:
                raise UserError(_ANOTHERS, exit_status=1)
            return cls(postgres_url=url, inst_data=inst_data)
        except (psycopg.Error, SQLAlchemyError, DagsterPostgresException) as exc:
            reason = classify(exc).error_message
        raise UserError(f"Dagster's database cannot be used: {reason}.", exit_status=1)


def _is_of_the_run(event: DagsterEvent | None) -> bool:
    return event is not None and event.is_job_event


def _without_its_statement(context: ExceptionContext) -> None:
    """Let no error of Dagster's database carry a statement: Dagster writes errors to stderr, with all parameters."""
    error = context.sqlalchemy_exception
    if error is not None:
        error.statement = error.params = None
