"""How long the parts of a run may last beyond its time budget, in seconds.

Belongs here: the bounds that add up to the promised two seconds, stated once. Does not belong here: bounds of things
that do not decide when a run ends (each stands where it is used).

A run is closed within `GRACE_SECONDS` after its budget. Work that may not be cut off at the budget shares
`OVERTIME_SECONDS`: the first page of a run whose budget was spent before it, a commit whose answer was lost, the last
request to a remote engine. The rest belongs to closing.
"""

from __future__ import annotations

GRACE_SECONDS = 2.0
CLOSING_SECONDS = 1.0
OVERTIME_SECONDS = GRACE_SECONDS - CLOSING_SECONDS
# How long a remote engine is asked once more about the requests in flight when the budget ended.
LAST_ASK_SECONDS = 0.75
# The last statement of a closing gets this much, even if those before it took longer than expected.
LAST_STATEMENT_SECONDS = 0.2
# Pauses between attempts to reach a database: a run goes on within a second of its return.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
