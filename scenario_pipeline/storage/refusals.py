"""Why a connection to a database failed: the reason in our own words, and what to do.

Belongs here: the closed list of reasons, and the facts that distinguish them. Does not belong here: connecting
(`database`), or failures on an open connection (`errors`).

While connecting, libpq gives no SQLSTATE for a message of the server, which may be in any language. So the connection
is tried once more with libpq's trace, which contains the SQLSTATE. libpq's own failures have only a text, which is in
English and is compared with a list. No part of either text is passed on.
"""

from __future__ import annotations

import os
import re
import select
import time
from dataclasses import dataclass
from enum import Enum

import psycopg
from psycopg import pq

from scenario_pipeline.errors import ErrorInfo, ErrorType, NoConnectionError

# A server that has just refused a connection refuses the next one within milliseconds.
PROBE_SECONDS = 2.0


class Reason(Enum):
    """Why there is no connection: type of failure, sentence, and remedy with `{name}` for the variable."""

    NO_SUCH_HOST = (
        ErrorType.NETWORK,
        "the name of the database's host could not be resolved",
        "correct the host in {name}, or the name server of this machine",
    )
    REFUSED = (
        ErrorType.NETWORK,
        "no server answers at the host and port of the database: the connection was refused",
        "pg_isready {address}",
    )
    NO_SOCKET = (
        ErrorType.NETWORK,
        "no server of this machine has a socket at the folder and port of the database",
        "pg_isready {address}",
    )
    UNREACHABLE = (
        ErrorType.NETWORK,
        "the network has no route to the host of the database",
        "pg_isready {address}",
    )
    TIMEOUT = (
        ErrorType.NETWORK,
        "the database did not answer the connection attempt in time",
        "pg_isready {address}",
    )
    CLOSED = (
        ErrorType.NETWORK,
        "the server closed the connection before it was established",
        "pg_isready {address}",
    )
    NOT_POSTGRES = (
        ErrorType.NETWORK,
        "the server at the host and port of the database is not a PostgreSQL server",
        "correct the host and port in {name}",
    )
    NOT_READY = (
        ErrorType.NETWORK,
        "the server is starting up or shutting down",
        "scenario-pipeline doctor, again when the server is up",
    )
    TOO_MANY = (
        ErrorType.DATABASE,
        "the server already has too many connections",
        "raise max_connections or the role's CONNECTION LIMIT, or set {name} to a pooler",
    )
    WRONG_PASSWORD = (
        ErrorType.DATABASE,
        "the server refused the password of this role, or does not know the role",
        "ALTER ROLE ... PASSWORD, on the server; or correct the user and password in {name}",
    )
    NO_PASSWORD = (
        ErrorType.DATABASE,
        "the server asks for a password, and none is set",
        "write the password into {name}, or into the file that its passfile names",
    )
    NO_SUCH_DATABASE = (
        ErrorType.DATABASE,
        "the server has no database with this name",
        "CREATE DATABASE ..., on the server; or correct the database in {name}",
    )
    NO_SUCH_ROLE = (
        ErrorType.DATABASE,
        "the server has no role with this name that may log in",
        "ALTER ROLE ... LOGIN, on the server; or correct the user in {name}",
    )
    NOT_ADMITTED = (
        ErrorType.DATABASE,
        "the server does not accept this role from this address for this database",
        "add a line to pg_hba.conf, then SELECT pg_reload_conf()",
    )
    TLS_REQUIRED = (
        ErrorType.DATABASE,
        "the server does not accept this role from this address without TLS",
        "set sslmode=require in {name}, or add a line to pg_hba.conf, then SELECT pg_reload_conf()",
    )
    OTHER_USER = (
        ErrorType.DATABASE,
        "the server does not accept this operating-system user, or its certificate, for this role",
        "give the role a password and a line in pg_hba.conf, or correct the user in {name}",
    )
    NO_CONNECT_RIGHT = (
        ErrorType.DATABASE,
        "the role may not connect to this database",
        "GRANT CONNECT ON DATABASE ... TO ..., on the server",
    )
    NO_CONNECTIONS_ALLOWED = (
        ErrorType.DATABASE,
        "the database does not accept connections",
        "ALTER DATABASE ... ALLOW_CONNECTIONS true, on the server",
    )
    OPTION_REFUSED = (
        ErrorType.DATABASE,
        "the server refused an option of the session",
        "correct options in {name}, or in PGOPTIONS",
    )
    POOLER_REFUSES_OPTIONS = (
        ErrorType.DATABASE,
        "the pooler refuses a startup parameter of the session",
        "ignore_startup_parameters = options, in pgbouncer.ini; ALTER ROLE ... SET row_security = off, on the server",
    )
    POOLER_DOES_NOT_KNOW = (
        ErrorType.DATABASE,
        "the pooler does not know this user or this database",
        "correct the user in {name}: a pooler of many projects needs the project in it, as in postgres.project",
    )
    NO_TLS = (
        ErrorType.DATABASE,
        "the server has no TLS, and sslmode requires it",
        "ssl = on, in postgresql.conf of the server; or set sslmode=prefer in {name}",
    )
    NO_ROOT_CERTIFICATE = (
        ErrorType.DATABASE,
        "the root certificate for checking the server does not exist",
        "set sslrootcert in {name} to the file of the certificate authority, or to system",
    )
    UNKNOWN_AUTHORITY = (
        ErrorType.DATABASE,
        "the server's certificate does not match the root certificate",
        "set sslrootcert in {name} to the certificate authority that signed it, or renew what has expired",
    )
    OTHER_HOST = (
        ErrorType.DATABASE,
        "the server's certificate is for another host name",
        "write the host in {name} as it is in the certificate, or set sslmode=verify-ca",
    )
    CLIENT_CERTIFICATE = (
        ErrorType.DATABASE,
        "the certificate or key of this client could not be used",
        "correct sslcert and sslkey in {name}: only its owner may read the key",
    )
    TLS_FAILED = (
        ErrorType.DATABASE,
        "the TLS handshake with the server failed",
        'openssl s_client -starttls postgres -connect "host:port"',
    )
    NO_COMMON_METHOD = (
        ErrorType.DATABASE,
        "the server and this client share no authentication method",
        "correct require_auth or channel_binding in {name}, or password_encryption on the server",
    )
    NO_SUCH_SESSION = (
        ErrorType.NETWORK,
        "no host of the database is what target_session_attrs requires",
        "add the primary to the hosts in {name}",
    )
    NO_SERVICE = (
        ErrorType.DATABASE,
        "the service of the connection string is in no service file",
        "add it to ~/.pg_service.conf, or set PGSERVICEFILE",
    )
    BAD_VALUE = (
        ErrorType.DATABASE,
        "a parameter of the connection string has a value that libpq does not accept",
        "correct the parameters in {name}: psql says which one it is",
    )
    UNKNOWN = (
        ErrorType.DATABASE,
        "the database refused the connection",
        "try {name} with psql, which shows what the server says",
    )

    def __init__(self, error_type: ErrorType, sentence: str, remedy: str) -> None:
        self.error_type, self.sentence, self.remedy = error_type, sentence, remedy


# How the messages of libpq begin, and those of psycopg before it calls libpq. A server's message begins with its
# severity.
_TEXTS = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"failed to resolve host|could not (?:translate host name|parse network address)", Reason.NO_SUCH_HOST),
        (r"definition of service|service file", Reason.NO_SERVICE),
        (r"server does not support SSL", Reason.NO_TLS),
        (r"root certificate file|could not .*root certificate", Reason.NO_ROOT_CERTIFICATE),
        (r"SSL error: certificate verify failed", Reason.UNKNOWN_AUTHORITY),
        (r"server certificate for|host name must be specified|certificate contains IP", Reason.OTHER_HOST),
        (r"certificate present|private key file|certificate does not match", Reason.CLIENT_CERTIFICATE),
        (
            r"could not (?:open|read|load|locate|initialize) (?:client |SSL )?(?:cert|private key)",
            Reason.CLIENT_CERTIFICATE,
        ),
        (r"received invalid (?:response|auth|proto)|expected authentication request", Reason.NOT_POSTGRES),
        (r"SSL |could not (?:establish|create|set|get) .*SSL|could not send SSL|direct SSL", Reason.TLS_FAILED),
        (r"fe_sendauth: no password supplied", Reason.NO_PASSWORD),
        (r"authentication method|channel binding|none of the server's SASL|GSSAPI enc", Reason.NO_COMMON_METHOD),
        (r"server (?:doesn't support GSSAPI|did not complete auth|offered SCRAM)", Reason.NO_COMMON_METHOD),
        (r"session is (?:not )?read-only|server is (?:not )?in hot standby", Reason.NO_SUCH_SESSION),
        (r"invalid |bad value for|could not match|weak sslmode|cannot match", Reason.BAD_VALUE),
        (r"(?:No such file or directory|Connection refused)\n\t.*locally", Reason.NO_SOCKET),
        (r"No such file or directory", Reason.NO_SOCKET),
        (r"timeout expired|Connection timed out|connection timeout", Reason.TIMEOUT),
        (r"Network is|No route to host|Host is|Permission denied|Cannot assign", Reason.UNREACHABLE),
        (r"Connection refused", Reason.REFUSED),
        (r"server closed the connection|could not (?:receive|send) |connection socket closed", Reason.CLOSED),
    )
)
_BEGINNING = re.compile(r'connection to server (?:at|on socket) ".*?"(?: \([^)]*\))?(?:, port \d+)? failed: ')
_OTHER_BEGINNING = re.compile(r"connection (?:failed|is bad): ")
# The codes are in the manual, appendix A. The routine distinguishes reasons that share a code; it is the same in every
# language.
_STATES = {
    "28P01": Reason.WRONG_PASSWORD,
    "3D000": Reason.NO_SUCH_DATABASE,
    "53300": Reason.TOO_MANY,
    "55000": Reason.NO_CONNECTIONS_ALLOWED,
    "57P01": Reason.NOT_READY,
    "57P02": Reason.NOT_READY,
    "57P03": Reason.NOT_READY,
    "55P02": Reason.OPTION_REFUSED,
    "42704": Reason.OPTION_REFUSED,
    "22023": Reason.OPTION_REFUSED,
    "42601": Reason.OPTION_REFUSED,
    "42501": Reason.OPTION_REFUSED,
}
_ROUTINES = {
    ("42501", "CheckMyDatabase"): Reason.NO_CONNECT_RIGHT,
    ("28000", "InitializeSessionUserId"): Reason.NO_SUCH_ROLE,
    ("28000", "auth_failed"): Reason.OTHER_USER,
    ("28000", "ClientAuthentication"): Reason.NOT_ADMITTED,
}
# Poolers name no routine and use one code for many reasons, but their messages are always in English.
_POOLERS = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"startup parameter|startup options", Reason.POOLER_REFUSES_OPTIONS),
        (r"tenant or user not found|no such user|no such database|endpoint ID is not", Reason.POOLER_DOES_NOT_KNOW),
        (r"password authentication failed|auth(?:entication)? failed|wrong password", Reason.WRONG_PASSWORD),
        (r"(?:SSL|TLS)[\w ]* required|without (?:SSL|TLS)", Reason.TLS_REQUIRED),
        (r"no more connections|too many|max.? ?client", Reason.TOO_MANY),
        (r"pooler is shut|shutting down|server login|connect failed|query_wait_timeout", Reason.NOT_READY),
    )
)
# What libpq's trace writes for a server's refusal; its text, with names from the user, may hold anything.
_ERROR_RESPONSE = re.compile(
    r'\tErrorResponse\t S ".*?"(?: V "[A-Z]+")? C "(?P<state>[0-9A-Z]{5})" M "(?P<text>.*?)"'
    r'(?= [A-Za-z] "| \\x00)(?:.*? R "(?P<routine>\w+)" \\x00)?',
    re.DOTALL,
)


@dataclass(frozen=True)
class _Refusal:
    """The message with which a server refused a connection."""

    state: str
    text: str
    routine: str | None
    without_tls: bool


def explained(exc: Exception, conninfo: str) -> NoConnectionError:
    """Return the failure of a connection attempt with its reason, and with no foreign text.

    Args:
        exc: what psycopg raised.
        conninfo: the connection string; it is tried once more if the server itself refused.
    """
    reason, state = _reason_of_text(exc), None
    if reason is None:
        said = _asked_again(conninfo)
        if isinstance(said, _Refusal):
            reason, state = _reason_of(said), said.state
        else:
            reason = said
    sentence = f"{reason.sentence} with SQLSTATE {state}" if reason is Reason.UNKNOWN and state else reason.sentence
    return NoConnectionError(ErrorInfo(reason.error_type, sentence, state), reason.remedy)


def _reason_of_text(exc: Exception) -> Reason | None:
    match exc:
        case psycopg.errors.ConnectionTimeout():
            return Reason.TIMEOUT
        case UnicodeError():  # a host name with an empty label, or one of more than 63 characters
            return Reason.NO_SUCH_HOST
        case psycopg.ProgrammingError():
            return Reason.BAD_VALUE
        case _:
            # After several hosts or attempts, the text of the last one counts; psycopg appends those of all hosts.
            last, _, _ = str(exc).partition("\nMultiple connection attempts failed.")
            text = _OTHER_BEGINNING.sub("", _BEGINNING.split(last)[-1], count=1)
            return next((reason for pattern, reason in _TEXTS if pattern.match(text)), None)


def _reason_of(refusal: _Refusal) -> Reason:
    if refusal.routine is None:
        known = next((reason for pattern, reason in _POOLERS if pattern.search(refusal.text)), None)
        return known or _STATES.get(refusal.state, Reason.UNKNOWN)
    reason = _ROUTINES.get((refusal.state, refusal.routine)) or _STATES.get(refusal.state, Reason.UNKNOWN)
    if reason is Reason.NOT_ADMITTED and refusal.without_tls:
        return Reason.TLS_REQUIRED
    return reason


def _asked_again(conninfo: str) -> _Refusal | Reason:
    """Try once more to connect, and return the server's last refusal.

    A server that refused a moment ago and does not now is one that starts or stops. Where nothing can be traced, the
    reason stays unknown.
    """
    try:
        descriptor = os.memfd_create("libpq-trace")  # it may hold a password, so it must never reach a disk
    except (AttributeError, OSError):
        return Reason.UNKNOWN
    try:
        connection = pq.PGconn.connect_start(conninfo.encode())
        try:
            connection.trace(descriptor)
            _finish(connection, time.monotonic() + PROBE_SECONDS)
            connection.untrace()
            is_local = connection.host.startswith(b"/")
        finally:
            connection.finish()
        trace = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")
    except (psycopg.Error, OSError, ValueError):  # libpq is too old to trace; a socket that has been closed
        return Reason.UNKNOWN
    finally:
        os.close(descriptor)
    found = list(_ERROR_RESPONSE.finditer(trace))
    if not found:
        return Reason.UNKNOWN if "\tErrorResponse\t" in trace else Reason.NOT_READY
    state, text, routine = found[-1].group("state", "text", "routine")
    without_tls = not is_local and "\tSSLRequest\t" not in trace
    return _Refusal(state, text, routine, without_tls)


def _finish(connection: pq.abc.PGconn, until: float) -> None:
    """Let libpq connect until it succeeds, fails or runs out of time."""
    status = pq.PollingStatus.WRITING
    while connection.status != pq.ConnStatus.BAD and time.monotonic() < until:
        waiting = [connection.socket]
        seconds = max(until - time.monotonic(), 0)
        if status == pq.PollingStatus.WRITING:
            select.select([], waiting, [], seconds)
        elif status == pq.PollingStatus.READING:
            select.select(waiting, [], [], seconds)
        else:
            return
        status = pq.PollingStatus(connection.connect_poll())
