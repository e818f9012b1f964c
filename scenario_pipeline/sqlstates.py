"""Which SQLSTATEs a single row can cause, so that the rest of its page can be evaluated (contract section 6).

Belongs here: the classes of the PostgreSQL manual, appendix A, each with its reason. Does not belong here: sentences
about a failure (`errors`).
"""

from __future__ import annotations

# Each class of SQLSTATEs in the PostgreSQL manual, appendix A, belongs to the run or to a row. The state of the
# connection, server or schema causes the run's classes, for all mentors alike. Bisecting because of a missing table
# would report every mentor as broken.
CLASSES_OF_THE_RUN = {
    "03": "SQL statement not yet complete: the connection is out of step",
    "08": "connection",
    "0B": "transaction initiation",
    "0L": "a grantor without the right to grant",
    "0P": "a role that does not exist",
    "25": "transaction state, its time-outs included",
    "26": "a prepared statement that does not exist, as can happen behind a pooler",
    "28": "authorization",
    "2B": "dependent privileges",
    "3B": "savepoints, which only the engine sets",
    "3D": "a database that does not exist",
    "3F": "a schema that does not exist",
    "40": "rollback: deadlocks and serialization failures are repeated, others end the run",
    "42": "syntax, rights and missing tables, columns or functions: a migration or a grant is missing",
    "53": "resources of the server",
    "55": "an object that is locked, in use or not ready",
    "57": "an operator or a limit of time",
    "58": "an error of the server's system",
    "72": "a snapshot too old",
    "F0": "a configuration file of the server",
    "HV": "a foreign server",
    "XX": "an internal error, or damage that must not hide among mentors",
}
# The engine's own statement raises these for a value only, or not at all. In the second case a rule, a trigger, a view
# or a function raised them for the row on which it was called.
CLASSES_OF_A_ROW = {
    "02": "no data; an error only where a rule raises it",
    "09": "triggered action",
    "0A": "a feature that a value asks for, such as an unknown part of a date",
    "0F": "locator; only a rule raises it",
    "0Z": "diagnostics requested outside a handler",
    "10": "an XPath expression that a value makes invalid",
    "20": "CASE without a branch for a value",
    "21": "a subquery with two rows for one mentor",
    "22": "data exception",
    "23": "constraints, also of tables that a trigger writes",
    "24": "cursors, which only a function opens",
    "27": "a trigger that changes the row it is called for",
    "2D": "a function that ends the transaction",
    "2F": "a function that fails on a value, such as by reaching its end without RETURN",
    "34": "a cursor that a function has not opened",
    "38": "raised by a function in another language",
    "39": "the protocol of triggers and functions, such as null for a strict one",
    "44": "WITH CHECK OPTION of a view",
    "45": "raised by a rule: the SQL standard's class for it",
    "54": "limits of size, such as a key too large for an index or too deep a recursion",
    "P0": "raised by PL/pgSQL",
}
# While a statement runs, only a value can be read as a name: the engine's own names are fixed.
_OF_A_ROW = frozenset({"42602", "42622"})


def is_of_a_row(state: str) -> bool:
    """Whether a SQLSTATE belongs to a row; a class missing from the manual was invented by a rule."""
    return state in _OF_A_ROW or state[:2] not in CLASSES_OF_THE_RUN
