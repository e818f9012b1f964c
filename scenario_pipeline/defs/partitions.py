"""The dates that can be evaluated, as daily partitions (contract section 8).

Belongs here: where the partitions begin, and in which time zone. Does not belong here: what evaluates them.
"""

from dagster import DailyPartitionsDefinition

from scenario_pipeline.settings import Settings

FIRST_PARTITION = "2024-01-01"
# One partition a day, today's included, in the configured time zone.
partitions = DailyPartitionsDefinition(
    start_date=FIRST_PARTITION, timezone=Settings.from_environment().timezone.key, end_offset=1
)
