"""How the value of one step reaches the next.

Belongs here: the IO manager of the job and the asset. Does not belong here: what the values are (`records`).
"""

import pickle
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dagster import (
    DagsterEventType,
    DagsterInstance,
    InitResourceContext,
    InputContext,
    IOManager,
    OutputContext,
    io_manager,
)


class HandedOnOutputs(IOManager):
    """Hands values on in memory, and keeps a copy in files for as long as somebody may need it.

    A run is one process, so no step needs a file: a full disk must not end a run. A re-execution from failure is
    another process, and its parent may have been killed, so the copy is written at once. It goes with the run when
    the run succeeds; otherwise `defs.retention` removes it.

    Args:
        folder: where the files of all runs are, as Dagster's own manager has laid them out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._values: dict[tuple[str, ...], Any] = {}
        self._written: set[Path] = set()

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Keep a step's value."""
        key = tuple(context.get_identifier())
        self._values[key] = obj
        with suppress(OSError):  # a full disk: then this run can only be executed anew
            path = self._folder.joinpath(*key)
            self._written.add(self._folder / key[0] / key[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(obj))

    def load_input(self, context: InputContext) -> Any:
        """Return the value of an earlier step, of this run or of the run that it re-executes."""
        key = tuple(context.get_identifier())
        if key in self._values:
            return self._values[key]
        return pickle.loads(self._folder.joinpath(*key).read_bytes())  # noqa: S301 - our own file, as Dagster's manager

    def forget(self) -> None:
        """Remove the files of this run's steps."""
        for folder in self._written:
            shutil.rmtree(folder, ignore_errors=True)


# A generator is taken, as for any resource, and missing in the annotation.
@io_manager(description="Hands values on in memory; a run that did not succeed keeps them for a re-execution.")  # type: ignore[arg-type]
def handed_on_outputs(context: InitResourceContext) -> Iterator[HandedOnOutputs]:
    """Yield the manager of one run, in the folder of Dagster's instance."""
    instance = context.instance or DagsterInstance.get()
    outputs = HandedOnOutputs(Path(instance.storage_directory()))
    yield outputs
    with suppress(Exception):  # Dagster's storage is gone: the files wait for the retention
        if context.run is not None and _has_done_its_last_step(instance, context.run.run_id):
            outputs.forget()


def _has_done_its_last_step(instance: DagsterInstance, run_id: str) -> bool:
    """Whether a run has succeeded; its status says so only after its resources are gone."""
    newest = instance.get_records_for_run(
        run_id, of_type=DagsterEventType.STEP_SUCCESS, limit=1, ascending=False
    ).records
    event = newest[0].event_log_entry.dagster_event if newest else None
    return event is not None and (event.step_key or "").endswith("summarize_run")
