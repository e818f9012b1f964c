"""Scenario pipeline: tells peer mentors' organisations the right thing at the right moment, once."""
