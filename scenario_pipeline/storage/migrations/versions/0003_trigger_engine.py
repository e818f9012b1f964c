"""What the http trigger engine leaves of a page, and the replies of the engine that the project serves itself."""

from alembic import op

revision = "0003"
down_revision = "0002"

UPGRADE = """
-- A remote engine may keep its notifications elsewhere, so that they cannot be counted here.
ALTER TABLE scenario.scheduler_runs ADD COLUMN engine text NOT NULL DEFAULT 'sql';

-- A budget can end between two chunks of a page: the mentors who were never asked about are left to the next run.
ALTER TABLE scenario.scheduler_run_pages ADD COLUMN left_mentor_ids uuid[] NOT NULL DEFAULT '{}';

-- The first reply to each Idempotency-Key, written in the transaction of the work; NULL only inside it.
CREATE TABLE scenario.trigger_engine_replies (
    idempotency_key text PRIMARY KEY CHECK (length(idempotency_key) BETWEEN 1 AND 200),
    request_fingerprint text NOT NULL,
    reply jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX trigger_engine_replies_created ON scenario.trigger_engine_replies (created_at);
"""


def upgrade() -> None:
    """Add the column and the table."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Refuse: a repeated request would be evaluated again, and its first reply is lost to whoever asks for it."""
    raise NotImplementedError("restore a backup instead: dropping the replies would let a lost one be counted twice")
