"""The dates that can be evaluated, as daily partitions (contract section 8).

Belongs here: where the partitions begin, and in which time zone. Does not belong here: what evaluates them.
"""

from zoneinfo import ZoneInfo

from dagster import DailyPartitionsDefinition

FIRST_PARTITION = "2024-01-01"


def daily_partitions(timezone: ZoneInfo) -> DailyPartitionsDefinition:
    """Return one partition for each day, today included, in this time zone."""
    return DailyPartitionsDefinition(start_date=FIRST_PARTITION, timezone=timezone.key, end_offset=1)
