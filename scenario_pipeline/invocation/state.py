"""How far an invocation has come (contract sections 4 and 5).

Belongs here: the states. Does not belong here: the transitions (`invocation.run`).
"""

from __future__ import annotations

from enum import Enum


class State(Enum):
    """How far an invocation has come; `docs/explanation/invocation-states.md` draws who makes which transition.

    `UNRECORDED` has a log and no row in the ledger: the database could not be written when the run began.
    """

    NEW = "new"
    UNRECORDED = "unrecorded"
    OPEN = "open"
    LISTED = "listed"
    CLOSED = "closed"
