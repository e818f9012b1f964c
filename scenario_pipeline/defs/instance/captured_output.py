"""What Dagster captures of a run's output, read and written.

Belongs here: the compute log manager that `dagster.yaml` names, and the log lines in its files. Does not belong here:
what the lines say (`log`).
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
from scenario_pipeline.errors import classify
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
        """Redirect stdout and stderr of this process to the files of `log_key`.

        A file that cannot be written captures nothing, and the step goes on; `UNWRITTEN` says which and why.
        """
        out, err = (
            Path(self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind]))
            for kind in (ComputeIOType.STDOUT, ComputeIOType.STDERR)
        )
        before = STDOUT_SINK.dropped_copies
        with ExitStack() as stack:
            if (fd := _opened(out)) is not None:
                stack.enter_context(STDOUT_SINK.copied_to_process_stdout())
                stack.enter_context(_redirected(1, fd))
            if (fd := _opened(err)) is not None:
                stack.enter_context(_redirected(2, fd))
            yield CapturedLogContext(log_key)
        if lost := STDOUT_SINK.dropped_copies - before:
            UNWRITTEN[out] = f"it lacks {lost} of the events"
        with suppress(OSError):
            Path(self.get_captured_local_path(log_key, "complete")).touch()


# Files of this process's captures that could not be written whole, with the reason.
UNWRITTEN: dict[Path, str] = {}


def _opened(path: Path) -> int | None:
    """Return a descriptor at the end of a file that is made if need be; None if it cannot be, as on a full disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as exc:
        UNWRITTEN[path] = classify(exc).error_message
        return None


@contextmanager
def _redirected(descriptor: int, fd: int) -> Iterator[None]:
    """Let everything this process writes to `descriptor` go to `fd`, which is closed."""
    before = os.dup(descriptor)
    try:
        _flush()
        os.dup2(fd, descriptor)
        os.close(fd)
        yield
    finally:
        _flush()
        os.dup2(before, descriptor)
        os.close(before)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # a full disk; what a step printed is lost, and the step goes on
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
            with suppress(OSError):  # a full disk
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
