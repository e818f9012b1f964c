"""Dagster's drawer: the only folder besides `definitions.py` that imports it.

Belongs here: ops, graph, job, schedules, resources and the instance. Does not belong here: any decision; ops fetch,
call and emit.
"""
