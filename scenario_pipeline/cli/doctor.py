"""`scenario-pipeline doctor`: what keeps the scheduler from working, and what went wrong in its last runs.

Belongs here: which examinations are made, and how their findings are printed. Does not belong here: looking (`doctor`
of the package).
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import click

from scenario_pipeline.cli.terminal import one_sentence
from scenario_pipeline.failures import UserError
from scenario_pipeline.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@one_sentence
def doctor(as_json: bool) -> None:
    """Find what keeps the scheduler from working.

    It also looks at how the last runs ended. It changes nothing. Each finding is one sentence, with the command that
    fixes the problem.

    Exit status: 0 no problem, 1 a problem, 2 something could not be examined.
    """
    from scenario_pipeline.defs.instance.examination import examine_instance
    from scenario_pipeline.defs.schedules import last_due
    from scenario_pipeline.doctor.database import examine_database
    from scenario_pipeline.doctor.environment import examine_trigger_engine, examine_variables, examine_web_server
    from scenario_pipeline.doctor.findings import Finding, Status, in_time, overall

    try:
        settings = Settings.from_environment()
        due = last_due(settings, datetime.now(UTC))
    except UserError as exc:
        findings = [Finding("settings", Status.UNKNOWN, str(exc))]
    else:
        findings = [
            *in_time("database_connection", examine_database(settings, last_due=due)),
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
                click.echo(f"        fix: {finding.remedy}")
    sys.exit({Status.OK: 0, Status.PROBLEM: 1, Status.UNKNOWN: 2}[status])
