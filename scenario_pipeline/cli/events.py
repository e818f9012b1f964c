"""`scenario-pipeline events`: the event log, for those who read it elsewhere.

Belongs here: its commands. Does not belong here: the schema, or what a valid log is (`log`).
"""

from __future__ import annotations

import json
import sys
from typing import BinaryIO

import click

from scenario_pipeline.cli.terminal import EXIT_COMPLETED, EXIT_FAILED, counted, echo, one_sentence


@click.group()
def events() -> None:
    """Work with the event log."""


@events.command("schema")
@one_sentence
def events_schema() -> None:
    """Print the JSON Schema of one line of the event log."""
    from scenario_pipeline.log.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@events.command("validate")
@click.argument("file", type=click.File("rb"), default="-")
@one_sentence
def events_validate(file: BinaryIO) -> None:
    """Check an event log: strict JSON, schema, grammar and identities.

    FILE is a log, or - for stdin, which is the default. stderr says how many invocations it holds.

    Exit status: 0 if the log is valid, else 1.
    """
    from scenario_pipeline.log.validation import violations

    found, seen_ids = 0, set[str]()
    for sentence in violations(file, seen_ids=seen_ids):
        click.echo(sentence)
        found += 1
    # An empty log breaks no rule, and is hardly what its reader expects.
    no_log = "" if seen_ids or found else "The log holds no invocation: "
    echo(f"{no_log}{counted(len(seen_ids), 'invocation')}, {counted(found, 'violation')}.")
    sys.exit(EXIT_FAILED if found else EXIT_COMPLETED)
