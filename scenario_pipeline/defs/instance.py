"""What `dagster.yaml` names: where Dagster keeps its records, and how it captures a step's output.

Belongs here: classes of the instance, and loading it from code. Both read the same settings as the command line, so
that every Dagster process works in a fresh clone without a variable set.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import psycopg
from dagster import DagsterEventType, DagsterInstance
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._core.storage.sql import check_alembic_revision
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.run_storage import run_storage
from dagster_postgres.utils import DagsterPostgresException, pg_alembic_config
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline.doctor.findings import STATEMENT_SECONDS, Finding, Status
from scenario_pipeline.errors import ErrorInfo, ErrorType, SystemicError, UserError, classify
from scenario_pipeline.settings import PROJECT_FOLDER, Settings
from scenario_pipeline.storage import conninfo, database, ledger
from scenario_pipeline.structured_logger import STDOUT_SINK, LineSink

# The daemon writes a heartbeat every 30 seconds; Dagster's web UI allows as much before it warns.
DAEMON_SILENCE_SECONDS = 300
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
        self._lost_since: float | None = None
        self._given_up_at = 0.0

    def begin_run(self, time_budget_seconds: float) -> None:
        """Wait for nothing beyond this time budget, which begins now."""
        self._until = time.monotonic() + time_budget_seconds
        self._lost_since = None

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


class CapturedLogs(LocalComputeLogManager):
    """Captures the output of steps in files without mirroring it through `tail`, which tears lines.

    While a step is captured, the logger writes each line twice: to the captured stdout, where the web UI shows it,
    and to the process's own stdout. So both hold every line whole, and stdout holds nothing else.
    """

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Return no options: files are kept under `SCENARIO_HOME`."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:  # noqa: ARG003
        """Keep the files where all processes of one `SCENARIO_HOME` find them."""
        return cls(base_dir=str(dagster_home(Settings.from_environment()) / "storage"), inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        """Redirect stdout and stderr of this process to the files of `log_key`."""
        with ExitStack() as stack:
            stack.enter_context(STDOUT_SINK.copied_to_process_stdout())
            for descriptor, kind in ((1, ComputeIOType.STDOUT), (2, ComputeIOType.STDERR)):
                path = Path(self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind]))
                stack.enter_context(_redirected(descriptor, path))
            yield CapturedLogContext(log_key)
        Path(self.get_captured_local_path(log_key, "complete")).touch()


@contextmanager
def _redirected(descriptor: int, path: Path) -> Iterator[None]:
    """Let everything this process writes to `descriptor` go to the end of the file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(descriptor)
    try:
        with path.open("ab") as file:
            _flush()
            os.dup2(file.fileno(), descriptor)
        yield
    finally:
        _flush()
        os.dup2(before, descriptor)
        os.close(before)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def captured_lines(instance: DagsterInstance, run_id: str) -> Iterator[bytes]:
    """Yield the lines of the event log that Dagster captured of a run, without their line feeds."""
    for log_key in _log_keys(instance, run_id):
        stdout = instance.compute_log_manager.get_log_data(log_key).stdout or b""
        for line in stdout.split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:  # a line torn by a kill; what others print
                continue
            if isinstance(entry, dict) and entry.get("invocation_id") == run_id:
                yield line


@contextmanager
def sink_of_dead_run(instance: DagsterInstance, run_id: str) -> Iterator[LineSink]:
    """Yield a sink that writes to this process's stdout and to the end of what was captured of a run.

    So the web UI shows the whole log of a run whose process died, if this machine holds its files.
    """
    sink = LineSink(STDOUT_SINK.fd)
    with _added_to_captured(instance, run_id, sink):
        yield sink


@contextmanager
def captured_to_the_end(instance: DagsterInstance | None, run_id: str) -> Iterator[None]:
    """Let what this process writes now stand in what was captured of its run, too, if no step is being captured.

    A run that is stopped between two steps is closed when Dagster has let go of its stdout.
    """
    if instance is None or STDOUT_SINK.is_captured:
        yield
        return
    with _added_to_captured(instance, run_id, STDOUT_SINK):
        yield


@contextmanager
def _added_to_captured(instance: DagsterInstance, run_id: str, sink: LineSink) -> Iterator[None]:
    """Let `sink` also write to the end of what was captured of a run, if this machine holds its files."""
    try:
        log_keys, manager = _log_keys(instance, run_id), instance.compute_log_manager
    except Exception:  # noqa: BLE001 - without Dagster's records nobody knows which file it is
        log_keys = []
    if not log_keys or not isinstance(manager, LocalComputeLogManager):
        yield
        return
    path = manager.get_captured_local_path(log_keys[-1], IO_TYPE_EXTENSION[ComputeIOType.STDOUT])
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
    except OSError:  # another machine's
        yield
        return
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")
        with sink.copied_to(fd):
            yield
    finally:
        os.close(fd)


def _log_keys(instance: DagsterInstance, run_id: str) -> list[Sequence[str]]:
    records = instance.all_logs(run_id, of_type=DagsterEventType.LOGS_CAPTURED)
    events = [record.dagster_event for record in records]
    keys = [event.logs_captured_data.file_key for event in events if event is not None]
    return [instance.compute_log_manager.build_log_key_for_run(run_id, key) for key in keys]


def dagster_home(settings: Settings) -> Path:
    """Return the folder of Dagster's local files."""
    return settings.home / "dagster"


def load_instance(settings: Settings) -> DagsterInstance:
    """Return the instance that the web UI shows, as `dagster.yaml` of the project describes it.

    Raises:
        UserError: it cannot be loaded because its database is out of reach.
    """
    home = prepare_dagster_home(settings)
    return DagsterInstance.from_config(str(home))


def unrecorded_instance() -> DagsterInstance:
    """Return an instance in memory, for a run whose record cannot be kept."""
    return DagsterInstance.ephemeral()


def prepare_dagster_home(settings: Settings) -> Path:
    """Create Dagster's home with the project's `dagster.yaml` in it, for processes that are told `DAGSTER_HOME`."""
    source = PROJECT_FOLDER / "dagster.yaml"
    home = dagster_home(settings)
    target = home / source.name
    try:
        content = source.read_text(encoding="utf-8")
        home.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text(encoding="utf-8") != content:
            target.write_text(content, encoding="utf-8")
    except OSError as exc:
        raise UserError(f"Dagster's home {home} cannot be prepared: {exc.strerror}.", exit_status=1) from None
    return home


def examine_instance(settings: Settings) -> Iterator[Finding]:
    """Look at Dagster's records for `scenario-pipeline doctor`, without creating what is missing."""
    name = "dagster_instance"
    try:
        urls = database.locate(settings, start=False)
    except UserError as exc:
        yield Finding(name, Status.UNKNOWN, str(exc), "scenario-pipeline up")
        return
    engine = database.connect(urls.dagster)
    try:
        yield _instance_finding(name, engine, settings)
    except Exception as exc:  # noqa: BLE001 - the boundary of a check: whatever it is, it is one finding
        failure = classify(exc)
        sentence = f"Dagster's database cannot be looked at: {failure.error_message}."
        remedy = database.remedy_of(exc, engine, "SCENARIO_DAGSTER_DATABASE_URL")
        remedy = remedy or "check SCENARIO_DAGSTER_DATABASE_URL and its role, with psql"
        yield Finding(name, Status.UNKNOWN, sentence, remedy)
    finally:
        engine.dispose()


def _instance_finding(name: str, engine: Engine, settings: Settings) -> Finding:
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SET TRANSACTION READ ONLY"))
        ledger.limit_statement_time(connection, STATEMENT_SECONDS)
        if connection.execute(text(_IS_ANOTHERS)).scalar_one():
            return Finding(name, Status.PROBLEM, _ANOTHERS, "CREATE DATABASE dagster OWNER scenario_scheduler")
        has_tables, may_create = connection.execute(
            text(
                "SELECT to_regclass('runs') IS NOT NULL, "
                "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
            )
        ).one()
        if not has_tables and not may_create:
            sentence = "Dagster's database has no tables, and this role may not create them."
            role = connection.execute(text("SELECT format('%I', current_user)")).scalar_one()
            return Finding(name, Status.PROBLEM, sentence, f"ALTER DATABASE dagster OWNER TO {role}")
        if not has_tables:
            return Finding(name, Status.OK, "Dagster's database has no tables yet: the first run creates them.")
        version, head = check_alembic_revision(pg_alembic_config(run_storage.__file__), connection)
        if version != head:
            sentence = "The tables of Dagster are those of another release of Dagster."
            return Finding(
                name, Status.PROBLEM, sentence, f"DAGSTER_HOME={dagster_home(settings)} dagster instance migrate"
            )
        # Dagster stores moments in UTC, without a zone.
        silent_seconds = connection.execute(
            text(
                "SELECT extract(epoch FROM timezone('UTC', clock_timestamp()) - max(timestamp)) FROM daemon_heartbeats"
            )
        ).scalar_one()
    if silent_seconds is None:
        return Finding(name, Status.OK, "Dagster's records can be used; its daemon never ran, so no schedule ticks.")
    if silent_seconds > DAEMON_SILENCE_SECONDS:
        sentence = f"Dagster's daemon was silent for {timedelta(seconds=int(silent_seconds))}: no schedule ticks."
        return Finding(name, Status.PROBLEM, sentence, "scenario-pipeline up")
    return Finding(name, Status.OK, "Dagster's records can be used, and its daemon gives signs of life.")
