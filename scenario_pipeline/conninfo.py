"""Connection strings, read by libpq itself, so that whatever psql accepts means the same here.

Belongs here: a string's parts, and the string as each of the two drivers takes it. Does not belong here: connecting
(`database`), or why that failed (`refusals`). No text of libpq is passed on: it quotes what may be a password.
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
# Either driver reads its server's text in the encoding of the session, and a server may prefer another one.
ENCODING = "utf8"


def checked(name: str, value: str) -> str:
    """Return a connection string that libpq can read: a URL, or pairs such as `host=/tmp dbname=scenario`.

    Args:
        name: the variable that holds it, for the sentence.
        value: what stands there.

    Raises:
        UserError: libpq cannot read it; the sentence quotes nothing of it.
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
    """Return the parameters of a connection string by libpq's names for them.

    Raises:
        UserError: libpq cannot read it.
    """
    found = _parts(conninfo)
    if found is None:
        raise UserError(f"The connection string {_what_is_wrong(conninfo)}")
    # To wait for ever, which 0 means, is no wish that a run with a time budget can grant.
    if _ENDLESS.fullmatch(found.get("connect_timeout", "")):
        del found["connect_timeout"]
    return found


def joined(parameters: Mapping[str, str]) -> str:
    """Return one connection string of parameters by libpq's names for them."""
    return make_conninfo("", **parameters)


def with_database(conninfo: str, database: str) -> str:
    """Return the connection string for another database of the same server."""
    return joined(parts_of(conninfo) | {"dbname": database})


def options_of(conninfo: str) -> str:
    """Return the session options that psql would use: the string's own, a service's, or those of `PGOPTIONS`."""
    # A port that cannot be lets libpq put everything together and stop before it looks up a name.
    put_together = pq.PGconn.connect_start(joined(parts_of(conninfo) | {"port": "0"}).encode())
    found = {option.keyword: option.val for option in put_together.info}
    put_together.finish()
    return (found.get(b"options") or b"").decode(errors="replace")


def shown_url(conninfo: str) -> URL:
    """Return what SQLAlchemy shows of a connection string; the driver is given the parts themselves."""
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
    """Return the URL by which SQLAlchemy lets psycopg2, which Dagster speaks, connect.

    SQLAlchemy does not read what psql does into a URL's host and query, so libpq gets its own string as `dsn`. User and
    password stand where SQLAlchemy hides a password.
    """
    parts = parts_of(conninfo) | {"client_encoding": ENCODING}
    user, password = parts.pop("user", ""), parts.pop("password", None)
    url = URL.create("postgresql+psycopg2", username=user, password=password, query={"dsn": joined(parts)})
    return url.render_as_string(hide_password=False)


def _parts(conninfo: str) -> dict[str, str] | None:
    try:
        return {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    except (psycopg.Error, UnicodeError):  # unreadable; percent-encoded bytes, or the environment's, that are no UTF-8
        return None


def _is_port(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and 0 < int(text[:6]) <= _MAX_PORT)


def _what_is_wrong(value: str) -> str:
    """Say where a string is wrong, going by what libpq can read and not by what it says."""
    address, _, parameters = value.partition("?")
    if not value.startswith(_URL_BEGINNINGS) and ("://" in value or "=" not in value):
        return "must begin with postgresql:// (user:password@host:port/database)."
    if parameters and value.startswith(_URL_BEGINNINGS) and _parts(address) is not None:
        return "has parameters behind its question mark that libpq cannot read: try it with psql, which says which."
    return (
        "has no valid form: write postgresql://user:password@host:port/database, with @ : / # ? % and spaces in the "
        "password percent-encoded (as UTF-8)."
    )
