"""Connection strings, parsed by libpq itself, so that they mean the same here as in psql.

Belongs here: the parts of a string, and its form for each of the two drivers. Does not belong here: connecting
(`database`), or why that failed (`refusals`). No text from libpq is passed on, because it may quote a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.engine import URL

from scenario_pipeline.errors import UserError

_URL_BEGINNINGS = ("postgresql://", "postgres://")
_MAX_PORT = 65_535
_ENDLESS = re.compile(r"\s*(?:-\d+|0+)\s*", re.ASCII)
# Both drivers decode text in the encoding of the session, and a server may default to another one.
ENCODING = "utf8"


def checked(name: str, value: str) -> str:
    """Return a connection string that libpq can read: a URL, or pairs such as `host=/tmp dbname=scenario`.

    Args:
        name: name of the variable, for the error message.
        value: its value.

    Raises:
        UserError: libpq cannot read it; the message quotes none of it.
    """
    found = _parts(value)
    if found is None:
        raise UserError(f"{name} {_what_is_wrong(value)}")
    if any(not _is_port(port) for port in found.get("port", "").split(",")) or "@" in found.get("host", ""):
        raise UserError(
            f"{name} has no valid host and port: write postgresql://user:password@host:port/database, "
            "with @ : / # ? % and spaces in the password percent-encoded."
        )
    return value


def parts_of(conninfo: str) -> dict[str, str]:
    """Return the parameters of a connection string, under libpq's names.

    Raises:
        UserError: libpq cannot read it.
    """
    found = _parts(conninfo)
    if found is None:
        raise UserError(f"The connection string {_what_is_wrong(conninfo)}")
    # 0 means to wait for ever, which a run with a time budget cannot do.
    if _ENDLESS.fullmatch(found.get("connect_timeout", "")):
        del found["connect_timeout"]
    return found


def joined(parameters: Mapping[str, str]) -> str:
    """Return one connection string made of parameters under libpq's names."""
    return make_conninfo("", **parameters)


def with_database(conninfo: str, database: str) -> str:
    """Return the connection string for another database on the same server."""
    return joined(parts_of(conninfo) | {"dbname": database})


def options_of(conninfo: str) -> str:
    """Return the session options that psql would use: from the string, its service, or `PGOPTIONS`."""
    # With an impossible port, libpq collects all options and stops before it looks up a name.
    put_together = pq.PGconn.connect_start(joined(parts_of(conninfo) | {"port": "0"}).encode())
    found = {option.keyword: option.val for option in put_together.info}
    put_together.finish()
    return (found.get(b"options") or b"").decode(errors="replace")


def shown_url(conninfo: str) -> URL:
    """Return the URL that SQLAlchemy displays; the driver receives the parts themselves."""
    parts = parts_of(conninfo)
    port = parts.get("port", "")
    return URL.create(
        "postgresql+psycopg",
        username=parts.get("user"),
        password=parts.get("password"),
        host=parts.get("host"),
        port=int(port) if port.isdigit() else None,
        database=parts.get("dbname"),
    )


def psycopg2_url(conninfo: str) -> str:
    """Return the URL with which SQLAlchemy connects through psycopg2, the driver that Dagster uses.

    SQLAlchemy reads a URL's host and query differently from psql, so libpq gets its own string as `dsn`. User and
    password stay in the URL, where SQLAlchemy hides the password.
    """
    parts = parts_of(conninfo) | {"client_encoding": ENCODING}
    user, password = parts.pop("user", ""), parts.pop("password", None)
    url = URL.create("postgresql+psycopg2", username=user, password=password, query={"dsn": joined(parts)})
    return url.render_as_string(hide_password=False)


def _parts(conninfo: str) -> dict[str, str] | None:
    try:
        return {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    except (
        psycopg.Error,
        UnicodeError,
    ):  # unreadable; percent-encoded bytes, or bytes of the environment, that are not UTF-8
        return None


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= _MAX_PORT)


def _what_is_wrong(value: str) -> str:
    """Describe where a string is wrong, judged by what libpq can read and not by its messages."""
    address, _, parameters = value.partition("?")
    if not value.startswith(_URL_BEGINNINGS) and ("://" in value or "=" not in value):
        return "must begin with postgresql:// (user:password@host:port/database)."
    if parameters and value.startswith(_URL_BEGINNINGS) and _parts(address) is not None:
        return "has parameters after the question mark that libpq cannot read: try it with psql, which names them."
    return (
        "has no valid form: write postgresql://user:password@host:port/database, with @ : / # ? % and spaces in the "
        "password percent-encoded (as UTF-8)."
    )
