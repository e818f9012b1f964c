"""What Dagster captures of a run's output, read and written.

Belongs here: the compute log manager that `dagster.yaml` names, and the log lines in its files. Does not belong here:
what the lines say (`log`).
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

from dagster import DagsterEventType, DagsterInstance

from scenario_pipeline.defs.dagster_private import (
    IO_TYPE_EXTENSION,
    CapturedLogContext,
    ComputeIOType,
    ConfigurableClassData,
    LocalComputeLogManager,
)
from scenario_pipeline.defs.instance.home import dagster_home
from scenario_pipeline.log.stdout import STDOUT_SINK, LineSink
from scenario_pipeline.settings import Settings


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
