"""Dagster's home folder, and the instance loaded from it.

Belongs here: the folder, the two files that Dagster reads in it, loading. Does not belong here: the classes that
`dagster.yaml` names.
"""

from pathlib import Path

from dagster import DagsterInstance

from scenario_pipeline.errors import UserError
from scenario_pipeline.settings import PROJECT_FOLDER, Settings, is_checkout


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


def dagster_file(settings: Settings, name: str) -> Path:
    """Return the `dagster.yaml` or `workspace.yaml` that holds.

    The operator's own in `SCENARIO_HOME` comes first, then the checkout's. The package has a copy of the checkout's.
    """
    own = settings.home / name
    if own.exists():
        return own
    return PROJECT_FOLDER / name if is_checkout(PROJECT_FOLDER) else Path(__file__).with_name(name)


def prepare_dagster_home(settings: Settings) -> Path:
    """Create Dagster's home with both files in it, for processes that are started with `DAGSTER_HOME` alone."""
    home = dagster_home(settings)
    try:
        home.mkdir(parents=True, exist_ok=True)
        for name in ("dagster.yaml", "workspace.yaml"):
            content = dagster_file(settings, name).read_text(encoding="utf-8")
            target = home / name
            if not target.exists() or target.read_text(encoding="utf-8") != content:
                target.write_text(content, encoding="utf-8")
    except OSError as exc:
        raise UserError(f"Dagster's home {home} cannot be prepared: {exc.strerror}.", exit_status=1) from None
    return home
