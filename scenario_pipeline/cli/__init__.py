"""The command line: `scenario-pipeline` (contract section 7).

Belongs here: the list of commands, each imported when it is called: completion starts the program at each Tab.
Does not belong here: a command (one module a group) or any rule.
"""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

import click


class _Entry(NamedTuple):
    """Where a command is, as `module:attribute` of this package, and the first line of its help."""

    target: str
    summary: str


COMMANDS = {
    "db": _Entry("db:db", "Manage the scheduler's database."),
    "demo": _Entry("data:demo", "Load synthetic demonstration data."),
    "doctor": _Entry("doctor:doctor", "Find what keeps the scheduler from working."),
    "engine": _Entry("serve:engine", "Serve the trigger engine over HTTP."),
    "events": _Entry("events:events", "Work with the event log."),
    "import": _Entry("data:import_", "Import organisations, mentors and their records from CSV files."),
    "run": _Entry("run:run", "Evaluate all active mentors once."),
    "up": _Entry("serve:up", "Start the database, Dagster's web server and its daemon."),
}


class _LazyGroup(click.Group):
    """A group that imports a command when it is called, and none to list them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].target.partition(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as above
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Tab completion in bash: add this line to ~/.bashrc. For zsh and fish, write zsh_source or "
    "fish_source.\n\n\b\n"
    'eval "$(_SCENARIO_PIPELINE_COMPLETE=bash_source scenario-pipeline)"',
)
@click.version_option(package_name="scenario-pipeline")
def main() -> None:
    """Notify peer mentors on behalf of their organisations, exactly once."""
    from scenario_pipeline.cli.terminal import echo
    from scenario_pipeline.settings import unknown_variables, unread_variables

    for name, nearest in unknown_variables():
        echo(f"Warning: {name} is not a setting and has no effect. Did you mean {nearest}?")
    for name in unread_variables():
        echo(f"Warning: {name} is a setting of a part that is not built yet and has no effect.")
