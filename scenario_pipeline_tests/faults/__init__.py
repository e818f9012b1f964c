"""Faults: what a broken server, disk, stream or process may cost, and what it may not."""
