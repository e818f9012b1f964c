"""`scenario-pipeline import` and `demo`: mentors for the bundled tables.

Belongs here: options, progress and counts. Does not belong here: files, or the merge (`loading`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from scenario_pipeline.cli.terminal import EXIT_FAILED, counted, echo, one_sentence, progress
from scenario_pipeline.failures import UserError
from scenario_pipeline.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

_ONE_OF = {
    "organisations": "organisation",
    "mentors": "mentor",
    "activities": "activity",
    "certifications": "certification",
}


@click.command("import")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@one_sentence
def import_(folder: str) -> None:
    """Import organisations, mentors and their records from CSV files.

    DIR holds organisations.csv, mentors.csv, activities.csv and certifications.csv. All of it is imported, or nothing.
    """
    from scenario_pipeline.cli.connection import checked_schema, opened
    from scenario_pipeline.loading.merge import import_folder

    if not folder:
        raise UserError("DIR must be the folder that holds the four files.")
    with opened(Settings.from_environment()) as database, progress() as show:
        checked_schema(database)
        _check_tables_are_read(database)
        counts = import_folder(
            database, Path(folder), progress=lambda name, rows: show(f"Rows read of {name}.csv", rows)
        )
    echo(f"Imported {_listed(counts)}.")


@click.command()
@click.option("--mentors", type=int, default=500, show_default=True, help="How many peer mentors.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same data.")
@one_sentence
def demo(mentors: int, seed: int) -> None:
    """Load synthetic demonstration data."""
    from scenario_pipeline.cli.connection import checked_schema, opened
    from scenario_pipeline.loading.demo import is_empty, load_demo
    from scenario_pipeline.log.logger import utc_now

    settings = Settings.from_environment()
    with opened(settings) as database, progress() as show:
        checked_schema(database)
        _check_tables_are_read(database)
        with database.connect() as connection:
            if not is_empty(connection):
                # The next run would notify real organisations about invented mentors.
                raise UserError("Demonstration data is loaded only where there are no mentors yet.", exit_status=1)
        counts = load_demo(
            database,
            mentors=mentors,
            seed=seed,
            today=settings.today(utc_now()),
            progress=lambda name, rows: show(f"Rows made of {name}", rows),
        )
    echo(f"Loaded {_listed(counts)}.")


def load_demo_if_empty(database: Engine, settings: Settings) -> None:
    """Load the demonstration data into a database that has no mentors."""
    from scenario_pipeline.cli.connection import checked_schema
    from scenario_pipeline.loading.demo import is_empty, load_demo
    from scenario_pipeline.log.logger import utc_now

    checked_schema(database)
    with database.connect() as connection:
        empty = is_empty(connection)
    if empty:
        load_demo(database, today=settings.today(utc_now()))
        echo("Loaded the demonstration data.")


def _check_tables_are_read(database: Engine) -> None:
    """Refuse to load people into tables that no evaluation looks at."""
    from scenario_pipeline.storage.columns import check_tables
    from scenario_pipeline.storage.source import reads_bundled_tables
    from scenario_pipeline.storage.tables import metadata

    with database.connect() as connection:
        if not reads_bundled_tables(connection):
            raise UserError(
                "The source views read tables of your own: no run would evaluate what is loaded here.",
                exit_status=EXIT_FAILED,
            )
        check_tables(connection, metadata.tables.values())


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(counted(count, _ONE_OF[name], name) for name, count in counts.items())
