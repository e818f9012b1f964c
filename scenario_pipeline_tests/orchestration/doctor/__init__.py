"""Tests of `scenario-pipeline doctor`."""
