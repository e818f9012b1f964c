"""A small good set of CSV files, and reading what an import made of it.

Belongs here: writing and changing files. Does not belong here: what an import must refuse.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

ORGANISATION = "10000000-0000-4000-8000-00000000000a"
OTHER_ORGANISATION = "10000000-0000-4000-8000-00000000000b"
MENTOR = "20000000-0000-4000-8000-00000000000a"
OTHER_MENTOR = "20000000-0000-4000-8000-00000000000b"
NOBODY = "30000000-0000-4000-8000-00000000000c"

# A small good set: each bad one is made of it by changing one place.
GOOD = {
    "organisations.csv": (
        f"id,name,timezone\n{ORGANISATION},Canarynorth,Europe/Oslo\n{OTHER_ORGANISATION},Canarywest,UTC\n"
    ),
    "mentors.csv": (
        "id,organisation_id,status,full_name,email,phone,locale,joined_on\n"
        f"{MENTOR},{ORGANISATION},active,Canaryfirst Canarylast,canary.1@mentor.invalid,+47 40000001,nn,2020-01-31\n"
        f"{OTHER_MENTOR},{OTHER_ORGANISATION},left,Canarysecond,,,,2021-02-28\n"
    ),
    "activities.csv": (
        "user_id,activity_type,activity_date\n"
        f"{MENTOR},canaryvisit,2024-02-29\n"
        f"{MENTOR},canaryvisit,2024-02-29\n"
        f"{OTHER_MENTOR},canarycall,2024-03-01\n"
    ),
    "certifications.csv": (
        f"user_id,certification_type,expires_on\n{MENTOR},canarybasic,2027-05-25\n{MENTOR},canarybasic,2027-05-25\n"
    ),
}
HEADERS_OF_MENTORS = {name: GOOD[name].splitlines(keepends=True)[0] for name in ("organisations.csv", "mentors.csv")}
HEADERS_OF_HISTORY = {
    name: GOOD[name].splitlines(keepends=True)[0] for name in ("activities.csv", "certifications.csv")
}
TABLES = {
    "organisations": "SELECT id::text, name, timezone FROM scenario.organisations ORDER BY 1",
    "mentors": "SELECT id::text, organisation_id::text, chapter_id::text, status, full_name, email, phone, locale,"
    " joined_on::text, notifications_opt_out FROM scenario.peer_mentors ORDER BY 1",
    "activities": "SELECT id, user_id::text, activity_type, activity_date::text FROM scenario.mentor_activities"
    " ORDER BY 1",
    "certifications": "SELECT user_id::text, certification_type, expires_on::text FROM scenario.mentor_certifications"
    " ORDER BY 1, 2, 3",
}


def contents(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that the import may write, as it stands."""
    with engine.connect() as connection:
        return {name: [tuple(row) for row in connection.exec_driver_sql(query)] for name, query in TABLES.items()}


def activities(engine: Engine) -> Counter[tuple[Any, ...]]:
    """The multiset of activities, without their ids."""
    return Counter(row[1:] for row in contents(engine)["activities"])


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write `files` with the line ends as given."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    return folder


def edit(folder: Path, name: str, old: str, new: str) -> None:
    """Change exactly one place of one file."""
    text = (folder / name).read_bytes().decode()
    assert text.count(old) == 1, "the change must be in one place"
    (folder / name).write_bytes(text.replace(old, new).encode())
