"""Starts and stops the server of the trigger engine.

Belongs here: the conditions for a start, and signals. Does not belong here: connections
(`engines.service.connections`), or routes (`engines.service.app`).
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

from sqlalchemy import Engine

from scenario_pipeline.engines.service.app import NOT_IN_A_RUN, EngineService
from scenario_pipeline.engines.service.connections import make_server
from scenario_pipeline.errors import UserError
from scenario_pipeline.log.logger import StructuredLogger
from scenario_pipeline.log.vocabulary import EngineStarted, EngineStopped
from scenario_pipeline.settings import is_loopback


def check_may_start(host: str, token: str | None, *, allow_anonymous: bool) -> None:
    """Refuse to serve without a token if others can reach the port.

    Raises:
        UserError: no token is set, and anonymous service was not requested or the address is not loopback.
    """
    if token is not None:
        return
    if not (allow_anonymous and is_loopback(host)):
        raise UserError(
            "The engine needs SCENARIO_ENGINE_TOKEN; without one it serves only this machine: "
            "--host 127.0.0.1 --allow-anonymous."
        )


def serve(database: Engine, listener: socket.socket, token: str | None, on_ready: Callable[[], None]) -> None:
    """Answer requests until SIGINT or SIGTERM, then finish those in flight and return.

    Args:
        database: pool of `CONNECTIONS` connections to the scheduler's own database.
        listener: a listening socket.
        token: the token that callers must send, or None to let anyone call.
        on_ready: called once signals end the service cleanly.
    """
    logger = StructuredLogger().bind(**NOT_IN_A_RUN)
    service = EngineService(database, token, logger)
    port = listener.getsockname()[1]
    server = make_server(
        service,
        on_start=lambda: logger.emit(EngineStarted(port, token is not None)),
        on_stop=lambda: logger.emit(EngineStopped(service.requests)),
    )
    # uvicorn handles signals only while it runs, and then raises them again for the previous handler. Its handler is
    # installed now, so that no signal is lost in between.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    on_ready()
    server.run(sockets=[listener])
