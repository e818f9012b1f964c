"""Where Dagster keeps its records, and how long a run waits for them.

Belongs here: the storage class that `dagster.yaml` names. Does not belong here: what Dagster captures of a run's
output (`defs.instance.captured_output`).
"""

import time
from typing import Any, Self

import psycopg
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy import event
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
CONNECT_SECONDS = 5
_OUT_OF_REACH = ErrorInfo(ErrorType.NETWORK, "the connection to Dagster's database was refused or lost")


class Patience:
    """How long the process of a run waits for Dagster's database.

    dagster-postgres waits eleven seconds, give or take as many, for each entry that it cannot store, and a run stores
    a few before it is torn down: its log was closed long after its time budget, and its process ended a minute late.
    Processes without a run, such as the web server and the daemon, are left to dagster-postgres.
    """

    def __init__(self) -> None:
        self._until: float | None = None
        self._is_run_over = False
        self._lost_since: float | None = None
        self._given_up_at = 0.0

    def begin_run(self, time_budget_seconds: float) -> None:
        """Wait for nothing beyond this time budget, which begins now."""
        self._until = time.monotonic() + time_budget_seconds
        self._is_run_over = False
        self._lost_since = None

    def end_run(self) -> None:
        """Be patient again: a process may live longer than the run it executed.

        Not before the database is back: Dagster stores its last entries about a run after the run's resources are gone.
        """
        self._is_run_over = True
        if self._lost_since is None:
            self._until = None

    def connect(self, dialect: Any, _record: Any, arguments: Any, parameters: Any) -> Any:
        """Connect as SQLAlchemy would have done (its event `do_connect`).

        Raises:
            SystemicError: the database was waited for long enough; dagster-postgres does not repeat this one.
        """
        if self._until is None:
            return dialect.connect(*arguments, **parameters)
        while True:
            now = time.monotonic()
            patience = OUTAGE_SECONDS if self._lost_since is None else self._lost_since + OUTAGE_SECONDS - now
            patience = min(patience, self._until - now)
            if self._lost_since is not None and patience <= 0 and now < self._given_up_at + RETRY_SECONDS:
                raise SystemicError(_OUT_OF_REACH)
            try:
                # A frozen server answers nothing, and each attempt takes all it may; two seconds is libpq's least.
                seconds = min(max(patience, 2), CONNECT_SECONDS)
                connection = dialect.connect(*arguments, **({"connect_timeout": int(seconds)} | parameters))
            except dialect.loaded_dbapi.OperationalError:
                self._lost_since = self._lost_since or now
            else:
                self._lost_since = None
                if self._is_run_over:
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
