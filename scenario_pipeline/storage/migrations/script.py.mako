"""${message}."""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Describe what changes and why."""
    ${upgrades if upgrades else "op.execute('')"}


def downgrade() -> None:
    """Describe how to go back, or refuse."""
    ${downgrades if downgrades else "raise NotImplementedError"}
