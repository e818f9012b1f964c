"""Dagster's drawer: the only folder besides `definitions.py` that imports it.

Belongs here: ops, graph, job, schedules, resources and the instance. Does not belong here: any decision; ops fetch,
call and emit.
"""

import warnings

from dagster import BetaWarning

# Owners of jobs, schedules and sensors are new in Dagster, whose version is pinned. It warns even about its own copies.
warnings.filterwarnings("ignore", message="Parameter `owners`", category=BetaWarning)
