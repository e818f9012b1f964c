"""Canaries: secrets that are looked for in everything a run leaves behind.

Belongs here: what a secret looks like once it was encoded, and reading each place in which one could stand. Does not
belong here: running anything.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

Found = Mapping[str, bytes]
"""What stands in a place, by the name of the file, table or process."""


@dataclass(frozen=True)
class Canary:
    """A secret, and what can be recognised of it.

    Attributes:
        name: what it is, for people.
        value: the secret itself.
        core: a part that no escape changes, so that it is also found in a percent-encoded or escaped secret.
    """

    name: str
    value: str
    core: str

    @property
    def encoded(self) -> str:
        """The secret as a URL holds it."""
        return quote(self.value, safe="")

    def traces(self) -> Iterator[bytes]:
        """Yield what gives the secret away: its core, and that in base64 and hexadecimal, wherever it begins."""
        core = self.core.encode()
        yield core
        yield core.hex().encode()
        for shift in range(3):
            # The first and the last group also hold what stands around the core.
            text = b64encode(bytes(shift) + core)
            yield text[4 if shift else 0 : len(text) - 4]

    def is_in(self, content: bytes) -> bool:
        """Whether the secret, or what is left of it in some encoding, stands in this."""
        lowered = content.lower()
        return any(trace in content or trace.lower() in lowered for trace in self.traces())


def leaks(found: Found, canaries: Iterable[Canary]) -> list[str]:
    """Return a sentence for each secret that stands somewhere."""
    return [
        f"{canary.name} in {where}" for where, content in found.items() for canary in canaries if canary.is_in(content)
    ]


def files_below(folder: Path) -> Found:
    """Return every file below a folder; names are content too."""
    return {
        str(path): str(path).encode() + b"\n" + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tables_of(url: str) -> Found:
    """Return every table of a database, with what Dagster has compressed in it."""
    found = {}
    with psycopg.connect(url, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for (table,) in tables:
            rows = connection.execute(f"SELECT * FROM {table}".encode()).fetchall()
            found[table] = b"\n".join(_plain(value) for row in rows for value in row)
    return found


def _plain(value: Any) -> bytes:
    if isinstance(value, bytes):
        with suppress(zlib.error):
            return zlib.decompress(value)
        return value
    return (json.dumps(value) if isinstance(value, dict | list) and _is_json(value) else str(value)).encode()


def _is_json(value: Any) -> bool:
    with suppress(TypeError):
        json.dumps(value)
        return True
    return False


def process_titles() -> Found:
    """Return the title of every process of this machine, as every user of it can read them."""
    found = {}
    for title in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found[str(title)] = title.read_bytes()
    return found


def sessions_of(url: str) -> Found:
    """Return what the server shows of its sessions: their name and their last statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT pid::text, concat_ws(' ', usename, application_name, query) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid()"
        ).fetchall()
    return {f"session {pid}": shown.encode() for pid, shown in rows}
