"""Tests on an embedded Postgres server, without Dagster."""
