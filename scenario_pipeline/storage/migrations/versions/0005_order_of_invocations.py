"""Invocations in the order in which the database counted them, whatever a machine's clock showed."""

from alembic import op

revision = "0005"
down_revision = "0004"

UPGRADE = """
-- Who comes next is decided by the latest invocation of a kind: a clock that was a day ahead would make it the latest
-- for a day.
ALTER TABLE scenario.scheduler_runs ADD COLUMN number bigint;
UPDATE scenario.scheduler_runs AS runs SET number = numbered.number FROM (
    SELECT invocation_id, row_number() OVER (ORDER BY started_at, invocation_id) AS number
    FROM scenario.scheduler_runs
) AS numbered WHERE runs.invocation_id = numbered.invocation_id;
ALTER TABLE scenario.scheduler_runs ALTER COLUMN number SET NOT NULL;
ALTER TABLE scenario.scheduler_runs ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY;
SELECT setval(pg_get_serial_sequence('scenario.scheduler_runs', 'number'),
              coalesce((SELECT max(number) FROM scenario.scheduler_runs), 0) + 1, false);
ALTER TABLE scenario.scheduler_runs ADD CONSTRAINT scheduler_runs_number_key UNIQUE (number);
"""


def upgrade() -> None:
    """Number the invocations that there are, and all later ones."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Refuse: the order would be lost."""
    raise NotImplementedError("restore a backup instead: dropping the numbers would lose the order of invocations")
