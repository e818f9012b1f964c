"""Tests of the embedded Postgres server itself."""
