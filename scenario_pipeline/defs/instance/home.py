"""Dagster's home folder, and the instance loaded from it.

Belongs here: the folder, its `dagster.yaml`, loading. Does not belong here: the classes that the file names.
"""

from pathlib import Path

from dagster import DagsterInstance

from scenario_pipeline.errors import UserError
from scenario_pipeline.settings import PROJECT_FOLDER, Settings


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
