"""Alembic's environment: runs the migrations on the connection that `database.upgrade_schema` hands over."""

from alembic import context

from scenario_pipeline.storage.tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
