"""How long the parts of a run may last beyond its time budget, in seconds.

Belongs here: the bounds that add up to the promised two seconds, stated once. Does not belong here: bounds that do not
decide when a run ends (each stands where it is used).

A run is closed within `GRACE_SECONDS` after its budget. Work that must not be cut off when the budget ends shares
`OVERTIME_SECONDS`. This is the first page of a run whose budget was already spent, a commit whose reply was lost, or
the last request to a remote engine. The remaining time is for closing.
"""

from __future__ import annotations

GRACE_SECONDS = 2.0
CLOSING_SECONDS = 1.0
OVERTIME_SECONDS = GRACE_SECONDS - CLOSING_SECONDS
# How long the final attempt for requests in flight may take after the budget has ended.
LAST_ASK_SECONDS = 0.75
# The last statement of a closing gets this much time, even if earlier ones took longer than expected.
LAST_STATEMENT_SECONDS = 0.2
# The longest pause between attempts to reach a database: a run continues within a second of its return.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
# All that Dagster is shown of a closed run shares this: names, the date's numbers, checks and sources. A table that
# a migration has locked must not keep the process.
DISPLAY_SECONDS = 2.0
