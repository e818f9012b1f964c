"""Tests without a database server and without Dagster; all of them end within seconds."""
