"""The command line: `scenario-pipeline` (contract section 7).

Belongs here: options, progress and summaries on stderr, exit statuses. Does not belong here: any rule; each command
checks its options, calls one function and says what came of it. Dagster is imported only by commands that need it.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import click
import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from scenario_pipeline import demo as demo_data
from scenario_pipeline import events as event_log
from scenario_pipeline import importer
from scenario_pipeline.doctor.database import examine_database
from scenario_pipeline.doctor.findings import Finding, Status, in_time, overall
from scenario_pipeline.doctor.surroundings import examine_trigger_engine, examine_variables, examine_web_server
from scenario_pipeline.engines.statement import check_source
from scenario_pipeline.errors import ErrorInfo, SystemicError, UserError, classify
from scenario_pipeline.installation import upgrade
from scenario_pipeline.records import DISPATCH_MODES, parse_date
from scenario_pipeline.scenarios import registry, select_scenarios
from scenario_pipeline.settings import (
    ENGINES,
    Settings,
    check_page_size,
    check_time_budget,
    is_loopback,
    unknown_variables,
)
from scenario_pipeline.storage import database, source
from scenario_pipeline.storage.roles import OWNER, may_upgrade
from scenario_pipeline.structured_logger import STDOUT_SINK, utc_now

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
            _stop(str(exc), exc.exit_status)
        except SystemicError as exc:
            _stop(f"{exc.info.error_message}{_advice(exc.info)}.", EXIT_FAILED)
        except (SQLAlchemyError, psycopg.Error) as exc:
            failure = classify(exc)
            _stop(f"The database could not be used: {failure.error_message}{_advice(failure)}.", EXIT_FAILED)
        except OSError as exc:
            _stop(f"The operating system refused: {classify(exc).error_message}.", EXIT_FAILED)

    return wrapped


def _advice(failure: ErrorInfo) -> str:
    """Say who may do what this role may not: a scheduler's URL is the usual one to have set."""
    return (
        f"; connect as the owner of the schema ({OWNER}) or see scenario-pipeline doctor"
        if failure.sqlstate == "42501"
        else ""
    )


def _stop(sentence: str, status: int) -> NoReturn:
    say(f"Error: {sentence}")
    sys.exit(status)


def say(text: str, *, newline: bool = True) -> None:
    """Tell the person at the terminal, if there is one; stdout belongs to machine output.

    What cannot be told must not decide how a run ends.
    """
    if sys.stderr is None:
        return
    try:
        click.echo(text, err=True, nl=newline)
    except (OSError, ValueError):
        # Python would flush it once more at the end, fail again, and exit with status 120.
        sys.stderr = None


@contextmanager
def progress(label: str) -> Iterator[Callable[[int], None]]:
    """Show a count on stderr while something long goes on, if anyone is looking."""
    shown = sys.stderr is not None and sys.stderr.isatty()

    def show(count: int) -> None:
        if shown:
            say(f"\r{label}: {count:,}", newline=False)

    yield show
    if shown:
        say("\r\033[K", newline=False)


@contextmanager
def opened(settings: Settings, *, upgrade_embedded: bool = True, connections: int = 2) -> Iterator[Engine]:
    """Yield an engine on the scheduler's database; the embedded one, which nobody else migrates, is upgraded."""
    urls = database.locate(settings)
    engine = database.connect(urls.scenario, connections=connections)
    try:
        database.reachable_or_explain(engine, "the embedded Postgres" if urls.embedded else "SCENARIO_DATABASE_URL")
        if urls.embedded and upgrade_embedded:
            upgrade(engine)
        yield engine
    finally:
        engine.dispose()


def checked_schema(engine: Engine) -> None:
    """Refuse a database whose version does not fit."""
    with engine.connect() as connection:
        database.check_schema(connection)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="scenario-pipeline")
def main() -> None:
    """Tell peer mentors' organisations the right thing at the right moment, once."""
    for name, nearest in unknown_variables():
        say(f"Warning: {name} is no setting and has no effect; the nearest one is {nearest}.")


@main.command()
@click.option("--date", "date_text", metavar="YYYY-MM-DD", help="Evaluation date. Default: today in SCENARIO_TIMEZONE.")
@click.option("--scenario", "scenarios", multiple=True, metavar="S", help="Scenario to evaluate; may be repeated.")
@click.option("--organisation", "organisations", multiple=True, metavar="ID", help="Organisation; may be repeated.")
@click.option("--dispatch-mode", type=click.Choice(DISPATCH_MODES), default="auto", show_default=True)
@click.option("--engine", "engine_name", type=click.Choice(ENGINES), help="Trigger engine. Default: SCENARIO_ENGINE.")
@click.option("--time-budget", metavar="SECONDS", help="How long to evaluate. Default: SCENARIO_TIME_BUDGET_SECONDS.")
@click.option("--page-size", metavar="N", help="Mentors a page. Default: SCENARIO_PAGE_SIZE, else by their number.")
@click.option("--demo", "with_demo", is_flag=True, help="Load the demonstration data first if there are no mentors.")
@one_sentence
def run(
    date_text: str | None,
    scenarios: tuple[str, ...],
    organisations: tuple[str, ...],
    dispatch_mode: str,
    engine_name: str | None,
    time_budget: str | None,
    page_size: str | None,
    with_demo: bool,
) -> None:
    """Evaluate all active mentors once: events on stdout, a summary on stderr.

    Exit status: 0 completed, 3 partial, 1 failed, 2 wrong usage.
    """
    settings = Settings.from_environment()
    evaluation_date = None if date_text is None else _date(date_text)
    config: dict[str, Any] = {
        "scenario_types": list(select_scenarios(scenarios)) if scenarios else [],
        "organisation_ids": [_organisation(text) for text in organisations],
        "dispatch_mode": dispatch_mode,
    }
    if evaluation_date is not None:
        config["evaluation_date"] = evaluation_date.isoformat()
    if engine_name is not None:
        config["engine"] = engine_name
    if time_budget is not None:
        config["time_budget_seconds"] = check_time_budget("--time-budget", time_budget)
    if page_size is not None:
        config["page_size"] = check_page_size("--page-size", page_size)
    if (engine_name or settings.engine) == "http":
        _ = settings.needed_engine_url
    if settings.database_url is None or with_demo:
        with opened(settings) as engine:
            if with_demo:
                _load_demo_if_empty(engine, settings)
    sys.exit(_run(settings, config, evaluation_date or settings.today(utc_now())))


def _run(settings: Settings, config: dict[str, Any], evaluation_date: date) -> int:
    """Execute one invocation and return the exit status that its closing events stand for."""
    from scenario_pipeline.defs.instance import load_instance, unrecorded_instance
    from scenario_pipeline.defs.launch import execute

    # dagster-postgres warns through the root logger, in the driver's own words.
    logging.root.addHandler(logging.NullHandler())
    try:
        recorded = load_instance(settings)
    except UserError as exc:
        # The mentors come first; and a log without a word about a database that is down would be the worst report.
        say(f"{exc} This run will not be seen in the web UI.")
        recorded = unrecorded_instance()

    seen: dict[str, dict[str, Any]] = {}

    def remember(line: bytes) -> None:
        entry = json.loads(line)
        seen[entry["event"]] = entry

    with (
        recorded as instance,
        progress("pages evaluated") as on_page,
        STDOUT_SINK.observed_by(remember),
    ):
        try:
            execute(instance, config, evaluation_date=evaluation_date, on_page=on_page)
        except Exception as exc:  # noqa: BLE001 - the boundary of Dagster: the events below say how the run ended
            say(f"Dagster could not keep its record of this run: {classify(exc).error_message}.")
    status = _summarise(seen)
    if STDOUT_SINK.dropped:
        say(f"{STDOUT_SINK.dropped} entries could not be written to stdout: the log is incomplete, the ledger is not.")
        return status or EXIT_FAILED
    return status


def _summarise(seen: dict[str, dict[str, Any]]) -> int:
    done = seen.get("scheduler_run_completed")
    if done is None:
        say("The run was stopped before it began; nothing was evaluated.")
        return EXIT_FAILED
    started = seen["scheduler_run_started"]
    say(
        f"{started['evaluation_date']} ({started['dispatch_mode']}): {done['total_evaluated']} of "
        f"{done['total_active_mentors']} active mentors evaluated in {done['duration_ms']} ms, "
        f"{done['total_dispatched']} dispatched {_breakdown(done['dispatched_by_scenario'])}, "
        f"{done['total_suppressed']} suppressed {_breakdown(done['suppressed_by_reason'])}, "
        f"{done['total_errors']} errors."
    )
    if failed := seen.get("scheduler_run_failed"):
        say(f"Failed ({failed['error_type']}): {failed['error_message']}.")
        return EXIT_FAILED
    if partial := seen.get("scheduler_run_partial"):
        say(f"Partial ({partial['reason']}): {partial['remaining_unprocessed_count']} mentors left to the next run.")
        return EXIT_PARTIAL
    return EXIT_COMPLETED


def _breakdown(counts: dict[str, int]) -> str:
    return f"({', '.join(f'{name} {n}' for name, n in counts.items())})" if counts else "(none)"


def _date(text: str) -> date:
    found = parse_date(text)
    if found is None:
        raise UserError("--date must be a date that exists, written YYYY-MM-DD.")
    return found


def _organisation(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise UserError("--organisation must be the id of an organisation, a UUID.") from None


@main.command("import")
@click.argument("folder", metavar="DIR")
@one_sentence
def import_(folder: str) -> None:
    """Import organisations.csv, mentors.csv, activities.csv and certifications.csv from DIR: all of it or nothing."""
    if not folder:
        raise UserError("DIR must be the folder that holds the four files.")
    with opened(Settings.from_environment()) as engine, progress("rows read") as show:
        checked_schema(engine)
        _check_tables_are_read(engine)
        counts = importer.import_folder(engine, Path(folder), progress=lambda _name, count: show(count))
    say("Imported " + ", ".join(f"{count:,} {name}" for name, count in counts.items()) + ".")


@main.command()
@click.option("--mentors", type=int, default=500, show_default=True, help="How many peer mentors.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same data.")
@one_sentence
def demo(mentors: int, seed: int) -> None:
    """Load deterministic synthetic data."""
    settings = Settings.from_environment()
    with opened(settings) as engine, progress("rows made") as show:
        checked_schema(engine)
        _check_tables_are_read(engine)
        with engine.connect() as connection:
            if not demo_data.is_empty(connection):
                # The next run would notify real organisations about invented mentors.
                raise UserError("Demonstration data is loaded only where there are no mentors yet.", exit_status=1)
        counts = demo_data.load_demo(
            engine,
            mentors=mentors,
            seed=seed,
            today=settings.today(utc_now()),
            progress=lambda _name, count: show(count),
        )
    say("Loaded " + ", ".join(f"{count:,} {name}" for name, count in counts.items()) + ".")


def _check_tables_are_read(engine: Engine) -> None:
    """Refuse to load people into tables that no evaluation looks at."""
    with engine.connect() as connection:
        if not source.reads_bundled_tables(connection):
            raise UserError(
                "The source views read tables of your own: what is loaded here would never be evaluated.", exit_status=1
            )


def _load_demo_if_empty(engine: Engine, settings: Settings) -> None:
    checked_schema(engine)
    with engine.connect() as connection:
        empty = demo_data.is_empty(connection)
    if empty:
        demo_data.load_demo(engine, today=settings.today(utc_now()))
        say("Loaded the demonstration data.")


@main.group()
def db() -> None:
    """Look after the scheduler's database."""


@db.command("upgrade")
@one_sentence
def db_upgrade() -> None:
    """Create the schema or bring it to this code's version."""
    with opened(Settings.from_environment(), upgrade_embedded=False) as engine:
        upgrade(engine)
    say(f"The schema has version {database.code_version()}.")


@db.command("status")
@one_sentence
def db_status() -> None:
    """Say which version the schema has, as JSON; exit status 1 if it does not fit the code."""
    with opened(Settings.from_environment(), upgrade_embedded=False) as engine, engine.connect() as connection:
        current = database.schema_version(connection)
    expected = database.code_version()
    click.echo(json.dumps({"schema_version": current, "code_version": expected, "fits": current == expected}))
    if current != expected:
        _stop(f"{database.mismatch(current).capitalize()}.", EXIT_FAILED)


@db.command("url")
@one_sentence
def db_url() -> None:
    """Print the URL of the scheduler's database, with its password, for psql and the like."""
    click.echo(database.locate(Settings.from_environment()).scenario)


@db.command("stop")
@one_sentence
def db_stop() -> None:
    """Stop the embedded Postgres of this SCENARIO_HOME."""
    stopped = database.embedded_postgres(Settings.from_environment()).stop()
    say("The embedded Postgres was stopped." if stopped else "The embedded Postgres was not running.")


@main.group("events")
def events_() -> None:
    """Work with the event log."""


@events_.command("schema")
@one_sentence
def events_schema() -> None:
    """Print the JSON Schema of one line of the event log."""
    click.echo(json.dumps(event_log.json_schema(), indent=2))


@events_.command("validate")
@click.argument("file", type=click.File("rb"), default="-")
@one_sentence
def events_validate(file: Any) -> None:
    """Check an event log (FILE, or stdin): strict JSON, schema, grammar, identities; exit status 1 if any is broken."""
    found = 0
    for sentence in event_log.violations(file):
        click.echo(sentence)
        found += 1
    say(f"{found} violations.")
    sys.exit(1 if found else 0)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Dagster has no login: keep it on loopback.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@one_sentence
def up(host: str, port: int) -> None:
    """Start the database, Dagster's web server and its daemon; one interrupt stops all of it."""
    from scenario_pipeline.defs.launch import serve

    settings = Settings.from_environment()
    _check_address(host, port)
    server = database.embedded_postgres(settings) if settings.database_url is None else None
    owns_server = server is not None and server.start()
    try:
        with opened(settings) as engine:
            _upgrade_if_needed(engine)
        if not is_loopback(host):
            say(f"Dagster has no login: whoever reaches {host} may launch runs, unless a proxy authenticates them.")
        status = serve(settings, host, port, on_ready=lambda url: click.echo(f"Dagster is served at {url}"))
    finally:
        if server is not None and owns_server:
            server.stop()
    sys.exit(status)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0 takes any free port.")
@click.option("--allow-anonymous", is_flag=True, help="Serve this machine without a token.")
@one_sentence
def engine(host: str, port: int, allow_anonymous: bool) -> None:
    """Serve the trigger engine over HTTP, for schedulers with SCENARIO_ENGINE=http; its events go to stdout."""
    from scenario_pipeline.engines import service

    settings = Settings.from_environment()
    service.check_may_start(host, settings.engine_token, allow_anonymous=allow_anonymous)
    with opened(settings, connections=service.CONNECTIONS) as database_engine:
        checked_schema(database_engine)
        with database_engine.connect() as connection:
            check_source(connection, list(registry()))
        with _listen(host, port) as listener:
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{listener.getsockname()[1]}"
            service.serve(
                database_engine,
                listener,
                settings.engine_token,
                on_ready=lambda: say(f"The trigger engine is served at {url}"),
            )


def _upgrade_if_needed(engine: Engine) -> None:
    """Bring the database to this code's version; a scheduler's role, which may not, starts on one that fits."""
    with engine.connect() as connection:
        fits = database.schema_version(connection) == database.code_version() and not may_upgrade(connection)
    if not fits:
        upgrade(engine)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@one_sentence
def doctor(as_json: bool) -> None:
    """Look for what would keep the scheduler from working; it changes nothing.

    Each finding is one sentence, and the command that mends it.

    Exit status: 0 nothing to mend, 1 a problem, 2 something could not be looked at.
    """
    from scenario_pipeline.defs.instance import examine_instance

    try:
        settings = Settings.from_environment()
    except UserError as exc:
        findings = [Finding("settings", Status.UNKNOWN, str(exc))]
    else:
        findings = [
            *in_time("database_connection", examine_database(settings)),
            *in_time("dagster_instance", examine_instance(settings)),
            examine_variables(),
            *examine_trigger_engine(settings),
            *examine_web_server(),
        ]
    status = overall(findings)
    if as_json:
        click.echo(json.dumps({"status": status, "findings": [finding.as_json() for finding in findings]}, indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.status:8}{finding.check}: {finding.finding}")
            if finding.remedy is not None:
                click.echo(f"        mend it with: {finding.remedy}")
    sys.exit({Status.OK: 0, Status.PROBLEM: 1, Status.UNKNOWN: 2}[status])


def _address_of(host: str, port: int) -> tuple[socket.AddressFamily, socket.SocketKind, int, Any]:
    """Resolve a host: family, kind, protocol and address of a socket that is to be bound to it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except UnicodeError:  # an empty label, or one of more than 63 characters, fails before anybody is asked
        raise socket.gaierror from None
    return family, kind, protocol, address


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, address = _address_of(host, port)
        # With the protocol named, asyncio sets TCP_NODELAY; without it each answer waits 40 ms for an acknowledgement.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Before anybody is told the URL: who is told calls at once.
        listener.listen()
    except OSError as exc:
        reason = classify(exc).error_message
    else:
        return listener
    raise UserError(f"The engine cannot listen at {host}, port {port}: {reason}.", exit_status=1)


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be bound: Dagster's daemon would go on without a web server."""
    try:
        family, kind, _, address = _address_of(host, port)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        reason = classify(exc).error_message
    else:
        return
    raise UserError(f"The web server cannot listen at {host}, port {port}: {reason}.", exit_status=1)
