"""What `doctor` checks beside the databases: variables, a remote trigger engine, and web servers of this machine.

Belongs here: asking them. Does not belong here: Dagster's records, which `defs.instance` checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import psutil

from scenario_pipeline.doctor.findings import Finding, Status, as_sentence
from scenario_pipeline.engines.http.client import health_failure
from scenario_pipeline.settings import Settings, unknown_variables, unread_variables


def examine_trigger_engine(settings: Settings) -> Iterator[Finding]:
    """Ask the trigger engine whether it works, if it is a remote one."""
    name = "trigger_engine"
    if settings.engine != "http" or settings.engine_url is None:
        yield Finding(name, Status.OK, "The trigger engine is sql: the database does the work.")
        return
    failure = health_failure(settings.engine_url, trust_proxy=settings.engine_trust_proxy)
    if failure is None:
        yield Finding(name, Status.OK, "The trigger engine reports that it is healthy.")
    else:
        remedy = 'curl --fail "$SCENARIO_ENGINE_URL/v1/health"'
        yield Finding(name, Status.PROBLEM, f"{as_sentence(failure.error_message)}", remedy)


def examine_variables() -> Finding:
    """Look for variables that are set like settings and have no effect."""
    unknown, unread = dict(unknown_variables()), list(unread_variables())
    # Programs beside this one may read them: no reason to end with a problem.
    without_effect = [f"{name} is a setting of a part that is not built yet and has no effect." for name in unread]
    if not unknown:
        sentence = " ".join(without_effect) or "Each SCENARIO_ variable that is set is a setting."
        return Finding("variables", Status.OK, sentence)
    verb = "has" if len(unknown) == 1 else "have"
    sentence = f"{', '.join(unknown)} {verb} no effect: no setting has that name."
    remedy = "; ".join(f"unset {name}, or write {nearest}" for name, nearest in unknown.items())
    return Finding("variables", Status.PROBLEM, " ".join([sentence, *without_effect]), remedy)


def examine_web_server() -> Iterator[Finding]:
    """Look whether a web server of Dagster on this machine, which has no login, can be reached from others."""
    name, count, unknown = "web_server", 0, 0
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:  # it has ended, or is another user's: nothing says that it is a web server
            continue
        if not any("dagster_webserver" in word or "dagster-webserver" in word for word in words):
            continue
        try:
            addresses = {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.AccessDenied:
            unknown += 1
            continue
        except psutil.Error:  # it has ended
            continue
        count += 1
        exposed = sorted(address for address in addresses if not ip_address(address).is_loopback)
        if exposed:
            sentence = f"Dagster's web server, which has no login, listens at {', '.join(exposed)}."
            remedy = "scenario-pipeline up --host 127.0.0.1, behind a proxy that authenticates"
            yield Finding(name, Status.PROBLEM, sentence, remedy)
            return
    if unknown:
        sentence = "A web server of Dagster belongs to another user: where it listens cannot be seen."
        yield Finding(name, Status.UNKNOWN, sentence, "scenario-pipeline doctor, as that user")
        return
    where = "listens on loopback only" if count else "does not run"
    yield Finding(name, Status.OK, f"Dagster's web server {where} on this machine.")
