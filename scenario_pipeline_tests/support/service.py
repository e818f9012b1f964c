"""The project's own trigger engine, served on a free port, and requests to it.

Belongs here: serving and asking. Does not belong here: what an answer must say.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from scenario_pipeline.engines.api import EVALUATIONS_PATH
from scenario_pipeline.engines.service.app import EngineService
from scenario_pipeline.engines.service.connections import make_server
from scenario_pipeline_tests.support.people import D, new_invocation_id
from scenario_pipeline_tests.support.project import PROJECT
from scenario_pipeline_tests.support.runs import ALL_SCENARIOS
from scenario_pipeline_tests.support.waiting import wait_until

TOKEN = "t0ken-of-the-tests"


@contextmanager
def serving(engine_service: EngineService) -> Iterator[str]:
    """Serve on a free port of this machine; yield the base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(engine_service)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.started, "the service answers")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


def a_request(mentor_ids: list[str], **changed: Any) -> dict[str, Any]:
    return {
        "invocation_id": new_invocation_id(),
        "evaluation_date": D.isoformat(),
        "scenario_types": list(ALL_SCENARIOS),
        "dispatch_mode": "live",
        "peer_mentor_ids": mentor_ids,
        **changed,
    }


def post(url: str, body: Any, key: str = "run:1:1", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {
        "Authorization": f"Bearer {TOKEN}",
        "Idempotency-Key": key,
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    sent = {name: value for name, value in sent.items() if value}
    return httpx.post(f"{url}{EVALUATIONS_PATH}", content=content, headers=sent, timeout=60, trust_env=False)


def result_of(mentor_id: str, *, dispatched: Any = None, suppressed: Any = None, error: Any = None) -> dict[str, Any]:
    return {
        "peer_mentor_id": mentor_id,
        "dispatched": dispatched or {},
        "suppressed": suppressed or {},
        "error": error,
    }


@contextmanager
def the_command(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "scenario_pipeline", "engine", "--port", "0", *arguments],
        env=inherited | {"PYTHONPATH": str(PROJECT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
