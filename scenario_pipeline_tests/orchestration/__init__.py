"""Tests of Dagster's jobs, schedules and sensors, and of commands that start runs."""
