"""`scenario-pipeline run`: one invocation in this process.

Belongs here: the options, and what a person is shown before and while it runs. Does not belong here: the run itself
(`defs.local_run`), or how it ended (`cli.outcome`).
"""

from __future__ import annotations

import io
import json
import logging
import sys
import uuid
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from datetime import date
from functools import partial
from typing import Any

import click
from click.shell_completion import CompletionItem

from scenario_pipeline.cli.terminal import (
    EXIT_FAILED,
    Progress,
    announce,
    counted,
    echo,
    one_sentence,
    progress,
)
from scenario_pipeline.failures import SystemicError, UserError
from scenario_pipeline.records import DISPATCH_MODES, parse_date, resolve_dispatch_mode
from scenario_pipeline.settings import ENGINES, Settings, check_page_size, check_time_budget


def _installed_scenarios(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a scenario; whatever goes wrong must not be printed into the line that is typed."""
    with suppress(Exception), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        from scenario_pipeline.scenarios import registry

        return [
            CompletionItem(name, help=scenario.description)
            for name, scenario in registry().items()
            if name.startswith(incomplete)
        ]
    return []


@click.command()
@click.option("--date", "date_text", metavar="YYYY-MM-DD", help="Evaluation date. Default: today in SCENARIO_TIMEZONE.")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="S",
    shell_complete=_installed_scenarios,
    help="Scenario to evaluate; repeat it for more. Default: all.",
)
@click.option(
    "--organisation",
    "organisations",
    multiple=True,
    metavar="ID",
    help="Organisation to evaluate; repeat it for more. Default: all.",
)
@click.option(
    "--dispatch-mode",
    type=click.Choice(DISPATCH_MODES),
    default="auto",
    show_default=True,
    help="live sends, dry_run does not, auto sends for recent dates only.",
)
@click.option("--engine", "engine_name", type=click.Choice(ENGINES), help="Trigger engine. Default: SCENARIO_ENGINE.")
@click.option("--time-budget", metavar="SECONDS", help="How long to evaluate. Default: SCENARIO_TIME_BUDGET_SECONDS.")
@click.option("--page-size", metavar="N", help="Mentors per page. Default: SCENARIO_PAGE_SIZE, else by their number.")
@click.option("--demo", "with_demo", is_flag=True, help="Load the demonstration data first if there are no mentors.")
@one_sentence
def run(
    date_text: str | None,
    scenarios: tuple[str, ...],
    organisations: tuple[str, ...],
    with_demo: bool,
    **options: str | None,
) -> None:
    """Evaluate all active mentors once.

    Events go to stdout, a summary to stderr.

    Exit status: 0 completed, 3 partial, 1 failed, 2 wrong usage.
    """
    from scenario_pipeline.cli.connection import opened
    from scenario_pipeline.cli.data import load_demo_if_empty
    from scenario_pipeline.log.logger import utc_now

    settings = Settings.from_environment()
    evaluation_date = None if date_text is None else _date(date_text)
    config = _run_config(scenarios, organisations, **options)
    today = settings.today(utc_now())
    if evaluation_date is not None:
        config["evaluation_date"] = evaluation_date.isoformat()
        resolve_dispatch_mode(config["dispatch_mode"], evaluation_date, today)
    if (options["engine_name"] or settings.engine) == "http":
        _ = settings.needed_engine_url
    if settings.database_url is None or with_demo:
        with opened(settings) as database:
            if with_demo:
                load_demo_if_empty(database, settings)
    if organisations:
        _refuse_unknown_organisations(settings, config["organisation_ids"])
    sys.exit(_execute(settings, config, evaluation_date or today))


def _run_config(
    scenarios: Sequence[str],
    organisations: Sequence[str],
    *,
    dispatch_mode: str | None,
    engine_name: str | None,
    time_budget: str | None,
    page_size: str | None,
) -> dict[str, Any]:
    """Return the run's configuration: what the options say, checked."""
    from scenario_pipeline.scenarios import select_scenarios

    config: dict[str, Any] = {
        "scenario_types": list(select_scenarios(scenarios)) if scenarios else [],
        "organisation_ids": [_organisation(text) for text in organisations],
        "dispatch_mode": dispatch_mode,
    }
    if engine_name is not None:
        config["engine"] = engine_name
    if time_budget is not None:
        config["time_budget_seconds"] = check_time_budget("--time-budget", time_budget)
    if page_size is not None:
        config["page_size"] = check_page_size("--page-size", page_size)
    return config


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


def _refuse_unknown_organisations(settings: Settings, organisation_ids: Sequence[str]) -> None:
    """Refuse a mistyped id before a run begins; a database that cannot answer is reported by the run, in its log."""
    from sqlalchemy.exc import SQLAlchemyError

    from scenario_pipeline.storage.database import connect, locate
    from scenario_pipeline.storage.source import unknown_organisations

    database = connect(locate(settings).scenario)
    try:
        with database.connect() as connection:
            unknown = unknown_organisations(connection, tuple(organisation_ids))
    except (SQLAlchemyError, SystemicError):
        return
    finally:
        database.dispose()
    if unknown:
        raise UserError(f"There is no organisation {', '.join(unknown)}: check the ids given with --organisation.")


def _execute(settings: Settings, config: dict[str, Any], evaluation_date: date) -> int:
    """Execute one invocation and return the exit status that its end in the ledger stands for."""
    announce("Loading Dagster")
    from scenario_pipeline.cli.outcome import summarise
    from scenario_pipeline.defs.instance.captured_output import UNWRITTEN
    from scenario_pipeline.defs.instance.home import load_instance, unrecorded_instance
    from scenario_pipeline.log.stdout import STDOUT_SINK

    # dagster-postgres warns through the root logger, in the driver's own words.
    logging.root.addHandler(logging.NullHandler())
    announce("Opening Dagster's records")
    try:
        recorded = load_instance(settings)
    except UserError as exc:
        # The mentors come first; and a log without a word about a database that is down would be the worst report.
        echo(f"{exc} This run will not be seen in the web UI.")
        recorded = unrecorded_instance()

    logged: dict[str, dict[str, Any]] = {}
    run_ids: list[str] = []

    def remember(line: bytes) -> None:
        entry = json.loads(line)
        logged[entry["event"]] = entry

    announce("Starting the run")
    with progress() as show, STDOUT_SINK.observed_by(remember):
        once = partial(_execute_once, config=config, evaluation_date=evaluation_date, show=show, run_ids=run_ids)
        refusal = once(recorded)
        if refusal is not None and not logged:
            echo(f"Dagster cannot keep a record of this run: {refusal}. It will not be seen in the web UI.")
            refusal = once(unrecorded_instance())
        if refusal is not None:
            echo(f"Dagster could not keep its record of this run: {refusal}.")
    status = summarise(settings, run_ids[-1] if run_ids else None, logged)
    for path, reason in UNWRITTEN.items():
        echo(f"{path} could not be written: {reason}. Only the web UI and the asset checks read this file.")
    if STDOUT_SINK.dropped:
        lost = counted(STDOUT_SINK.dropped, "entry", "entries")
        echo(f"{lost} could not be written to stdout: the log is incomplete; the ledger is complete.")
        return status or EXIT_FAILED
    return status


def _execute_once(
    instance: Any,
    config: dict[str, Any],
    evaluation_date: date,
    show: Progress,
    run_ids: list[str],
) -> str | None:
    """Execute one invocation; return why Dagster's records failed it, or lack some of it, if they do."""
    from scenario_pipeline.defs.instance.storage import PATIENCE
    from scenario_pipeline.defs.local_run import execute
    from scenario_pipeline.errors import classify

    try:
        with instance:
            ended_by_itself = execute(
                instance,
                config,
                evaluation_date=evaluation_date,
                on_page=lambda pages, total: show("Pages evaluated", pages, total),
                on_created=run_ids.append,
            )
    except Exception as exc:  # noqa: BLE001 - the boundary of Dagster: the ledger says how the run ended
        return classify(exc).error_message
    return PATIENCE.refusal.error_message if PATIENCE.refusal is not None and ended_by_itself else None
