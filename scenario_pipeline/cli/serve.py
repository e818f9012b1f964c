"""`scenario-pipeline up` and `engine`: what runs until it is interrupted.

Belongs here: options, addresses, and the URL that a person is shown. Does not belong here: the servers
(`defs.dev_server`, `engines.service`).
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import click

from scenario_pipeline.cli.terminal import announce, echo, one_sentence
from scenario_pipeline.failures import UserError
from scenario_pipeline.settings import Settings, is_loopback

if TYPE_CHECKING:
    from sqlalchemy import Engine


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Dagster has no login: keep it on loopback.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@one_sentence
def up(host: str, port: int) -> None:
    """Start the database, Dagster's web server and its daemon.

    The URL is printed once it answers. Ctrl-C stops all three.
    """
    from scenario_pipeline.cli.connection import opened, start_embedded
    from scenario_pipeline.storage.database import embedded_postgres

    settings = Settings.from_environment()
    # Dagster's daemon would go on without a web server that cannot listen.
    listening(host, port, "The web server").close()
    owns_server = settings.database_url is None and start_embedded(settings)
    try:
        with opened(settings) as database:
            _upgrade_if_needed(database)
        if not is_loopback(host):
            echo(f"Dagster has no login: anyone who reaches {host} may launch runs, unless a proxy authenticates them.")
        announce("Starting Dagster (Ctrl-C stops it)")
        from scenario_pipeline.defs.dev_server import serve

        status = serve(
            settings,
            host,
            port,
            on_ready=lambda url: click.echo(f"Dagster is served at {url}"),
            on_trouble=echo,
        )
    finally:
        if owns_server:
            embedded_postgres(settings).stop()
    sys.exit(status)


def _upgrade_if_needed(database: Engine) -> None:
    """Bring the database to this code's version; a scheduler's role, which may not, starts on one that fits."""
    from scenario_pipeline.storage.database import code_version, schema_version
    from scenario_pipeline.storage.roles import may_upgrade
    from scenario_pipeline.upgrade import upgrade

    with database.connect() as connection:
        fits = schema_version(connection) == code_version() and not may_upgrade(connection)
    if not fits:
        upgrade(database)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0 takes any free port.")
@click.option("--allow-anonymous", is_flag=True, help="Serve this machine without a token.")
@one_sentence
def engine(host: str, port: int, allow_anonymous: bool) -> None:
    """Serve the trigger engine over HTTP.

    Schedulers with SCENARIO_ENGINE=http call it. Its events go to stdout.
    """
    from scenario_pipeline.cli.connection import checked_schema, opened
    from scenario_pipeline.engines.service.app import CONNECTIONS
    from scenario_pipeline.engines.service.server import check_may_start, serve
    from scenario_pipeline.engines.source_check import check_source
    from scenario_pipeline.scenarios import registry

    settings = Settings.from_environment()
    check_may_start(host, settings.engine_token, allow_anonymous=allow_anonymous)
    with opened(settings, connections=CONNECTIONS) as database:
        checked_schema(database)
        with database.connect() as connection:
            check_source(connection, list(registry()))
        # It listens before anyone is told the URL, since that caller calls at once.
        with listening(host, port, "The engine") as listener:
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{listener.getsockname()[1]}"
            serve(
                database,
                listener,
                settings.engine_token,
                on_ready=lambda: echo(f"The trigger engine is served at {url}"),
            )


def listening(host: str, port: int, server: str) -> socket.socket:
    """Return a socket that listens at the address.

    Args:
        host: name or number of an address of this machine.
        port: TCP port; 0 takes any free one.
        server: whose address it is, for the sentence.

    Raises:
        UserError: there is no such address here, or it is taken (exit status 1).
    """
    from scenario_pipeline.errors import classify

    try:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except UnicodeError:  # an empty label, or one of more than 63 characters, fails before anybody is asked
            raise socket.gaierror from None
        # With the protocol named, asyncio sets TCP_NODELAY; without it each answer waits 40 ms for an acknowledgement.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as exc:
        reason = classify(exc).error_message
    else:
        return listener
    raise UserError(f"{server} cannot listen at {host}, port {port}: {reason}.", exit_status=1)
