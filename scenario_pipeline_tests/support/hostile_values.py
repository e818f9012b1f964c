"""Values that betray or break whatever asks them, and values of every other kind.

Belongs here: what is handed to the logger. Does not belong here: what must come out (`logger_promises`).
"""

from __future__ import annotations

from datetime import date, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from scenario_pipeline.errors import ErrorType
from scenario_pipeline_tests.support.names import CANARY

MENTOR = "0b1f6a2e-7c1d-4a55-9d0e-3f2a1b4c5d6e"


class Hostile:
    """An object that fails or betrays itself wherever it is asked."""

    def __repr__(self) -> str:
        return CANARY

    def __str__(self) -> str:
        raise ValueError(CANARY)

    def __eq__(self, other: object) -> bool:
        raise ValueError(CANARY)

    def __bool__(self) -> bool:
        raise ValueError(CANARY)

    __hash__ = None  # type: ignore[assignment]


class UnboundProxy:
    """What a lazy proxy outside its context does: it cannot even say what it is."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError(CANARY)


class TellingObject:
    def __str__(self) -> str:
        return CANARY

    __repr__ = __str__


class TellingDate(date):
    def __str__(self) -> str:
        return CANARY

    __repr__ = isoformat = __str__


class TellingId(UUID):
    def __str__(self) -> str:
        return CANARY

    __repr__ = __str__


class TornText(str):
    __slots__ = ()

    def __getitem__(self, key: object) -> str:
        raise ValueError(CANARY)

    def __len__(self) -> int:
        raise ValueError(CANARY)


class TornNumber(int):
    def __le__(self, other: object) -> bool:
        raise ValueError(CANARY)

    __ge__ = __lt__ = __gt__ = __le__


class TornMapping(dict[str, int]):
    def items(self) -> Any:
        raise ValueError(CANARY)


class TornList(list[int]):
    def __iter__(self) -> Any:
        raise ValueError(CANARY)


class TornZone(tzinfo):
    def utcoffset(self, _dt: datetime | None) -> timedelta:
        raise ValueError(CANARY)

    dst = utcoffset

    def tzname(self, _dt: datetime | None) -> str:
        return CANARY


def _endless() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


HOSTILE: dict[str, Any] = {
    "object": Hostile(),
    "object that quotes a row": TellingObject(),
    "class": TellingObject,
    "exception": ValueError(CANARY),
    "proxy without a class": UnboundProxy(),
    "mock that poses as text": MagicMock(spec=str),
    "date that quotes a row": TellingDate(2026, 3, 1),
    "id that quotes a row": TellingId(MENTOR),
    "text that cannot be cut": TornText("text"),
    "number that cannot be compared": TornNumber(7),
    "mapping that cannot be read": TornMapping(a=1),
    "list that cannot be read": TornList([1]),
    "time in a broken zone": datetime(2026, 3, 1, tzinfo=TornZone()),
    "generator": (CANARY for _ in range(3)),
    "bytes": CANARY.encode(),
    "recursive list": _endless(),
}
# By name: pytest looks at parameters, and these do not bear it.
hostile_values = pytest.mark.parametrize("hostile", HOSTILE)

_texts = st.text(st.characters(), max_size=700) | st.sampled_from(
    ["a\nb", "a\r\nb", "\x00", "\x1b[31m", "\x85", "\u2028", "\u2029", "\ud800", "\udfff\ud800", "\U0001f600" * 600]
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | _texts
    | st.binary()
    | st.decimals()
    | st.uuids()
    | st.datetimes()
    | st.sampled_from([object(), ErrorType.TIMEOUT, Path("/home/kari"), range(3), ...])
)
ANYTHING = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=80)
        | st.tuples(inner, inner)
        | st.dictionaries(_texts | st.integers() | st.none(), inner, max_size=80)
        | st.frozensets(st.integers() | _texts)
    ),
    max_leaves=100,
)
# One logger serves all examples, and several classes run the same promise.
many_values = settings(
    deadline=None,
    database=None,
    # Shrinking such values takes minutes and tells little more than the first failure.
    phases=[Phase.explicit, Phase.generate],
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
