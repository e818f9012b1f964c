"""Holds a log against the checker that shares no code with the project.

Belongs here: calling `check_events.py`. Does not belong here: changing it; it is a byte copy.
"""

from __future__ import annotations

import io
import runpy
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest

CHECKER = Path(__file__).parent / "check_events.py"


def stranger_says(log: bytes, canaries: Sequence[str] = ()) -> tuple[int, str]:
    """Return the checker's exit status and what it printed. It runs in this process: starting one takes longer."""
    words = [argument for word in canaries for argument in ("--canary", word)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.setattr("sys.argv", [str(CHECKER), *words])
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(log)))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(CHECKER), run_name="__main__")
    assert ended.value.code in (0, 1)
    return ended.value.code, said.getvalue()


def stranger_accepts(stdout: str, canaries: Sequence[str] = ()) -> None:
    """Expect no violation in a log and none of these words."""
    status, said = stranger_says(stdout.encode(), canaries)
    assert status == 0, said
