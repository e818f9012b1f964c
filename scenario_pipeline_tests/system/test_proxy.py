"""The guide's proxy with a login, as it stands on the page."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as connect_websocket

from scenario_pipeline_tests.support.deployment import (
    blocks,
    page,
)
from scenario_pipeline_tests.system.conftest import Up, free_port, wait_until

pytestmark = pytest.mark.system

USER, LOGIN = "alice", "the-password-of-alice"


class Proxy:
    """nginx with the page's server block, in front of a web server that runs already."""

    def __init__(self, upstream: str, folder: Path) -> None:
        nginx, htpasswd = shutil.which("nginx"), shutil.which("htpasswd")
        assert nginx, "nginx is missing: this test needs Debian's nginx"
        assert htpasswd, "htpasswd is missing: this test needs Debian's apache2-utils"
        authority = trustme.CA()
        certificate = authority.issue_cert("scenario.example.org", "127.0.0.1")
        certificate.private_key_pem.write_to_path(folder / "privkey.pem")
        for n, part in enumerate(certificate.cert_chain_pems):
            part.write_to_path(folder / "fullchain.pem", append=n > 0)
        self.tls = ssl.create_default_context()
        authority.configure_trust(self.tls)
        self.port = free_port()
        users = folder / "scenario.htpasswd"
        [told] = re.findall(r"`htpasswd (-B) /etc/nginx/scenario.htpasswd NAME`", page("how-to/proxy"))
        subprocess.run([htpasswd, told, "-i", "-c", str(users), USER], input=LOGIN.encode(), check=True)
        users.chmod(0o644)
        [block] = blocks("how-to/proxy", "nginx")
        for theirs, ours in (
            ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
            ("/etc/ssl/scenario", str(folder)),
            ("/etc/nginx", str(folder)),
            ("http://127.0.0.1:3000", upstream),
        ):
            assert theirs in block
            block = block.replace(theirs, ours)
        (folder / "scenario.conf").write_text(block)
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log stderr warn; events {{}}\n"
            f"http {{ access_log off; include {folder}/scenario.conf; }}\n"
        )
        self.process = subprocess.Popen([nginx, "-e", "stderr", "-c", str(folder / "nginx.conf")])

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", verify=self.tls, timeout=60, **options)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture
def proxy(up: Up) -> Iterator[Proxy]:
    """A proxy in front of `up`, in a folder that its workers, who are somebody else, may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        proxy = Proxy(up.url, Path(folder))
        try:
            wait_until(lambda: _answers(proxy), "nginx answers")
            yield proxy
        finally:
            proxy.stop()


def _answers(proxy: Proxy) -> bool:
    try:
        return proxy.get("/").status_code > 0
    except httpx.TransportError:
        assert proxy.process.poll() is None, "nginx has ended"
        return False


def test_nobody_gets_past_the_proxy_without_a_password(proxy: Proxy) -> None:
    """Whoever reaches Dagster can send notifications to everybody."""
    query = {"query": "{ version }"}
    for path in ("/", "/graphql?query={version}", "/server_info", "/dagit/notebook", "/logs/x/y/stdout"):
        assert proxy.get(path).status_code == 401, path
        assert proxy.get(path, auth=(USER, "a wrong one")).status_code == 401, path
    assert httpx.post(f"{proxy.url}/graphql", json=query, verify=proxy.tls).status_code == 401
    with (
        pytest.raises(InvalidStatus) as refused,
        connect_websocket(f"wss://127.0.0.1:{proxy.port}/graphql", ssl=proxy.tls),
    ):
        pass
    assert refused.value.response.status_code == 401


def test_the_whole_page_works_behind_the_proxy(proxy: Proxy, up: Up) -> None:
    """Without the upgrade of the websocket the page shows a run as it was when it was opened, for ever."""
    known = (USER, LOGIN)
    page = proxy.get("/", auth=known)
    assert (page.status_code, 'id="initialization-data"' in page.text) == (200, True)
    answer = httpx.post(f"{proxy.url}/graphql", json={"query": "{ version }"}, auth=known, verify=proxy.tls)
    assert "version" in answer.json()["data"]
    run_id = up.launch({"dispatch_mode": "dry_run"})["run"]["runId"]
    basic = httpx.BasicAuth(*known)._build_auth_header(*known)
    with connect_websocket(
        f"wss://127.0.0.1:{proxy.port}/graphql",
        ssl=proxy.tls,
        subprotocols=["graphql-ws"],  # type: ignore[list-item]  # a NewType of str
        additional_headers={"Authorization": basic},
    ) as socket:
        socket.send(json.dumps({"type": "connection_init", "payload": {}}))
        assert json.loads(socket.recv(30))["type"] == "connection_ack"
        subscription = (
            f'subscription {{ pipelineRunLogs(runId: "{run_id}") {{ '
            "... on PipelineRunLogsSubscriptionSuccess { messages { ... on MessageEvent { message } } } } }"
        )
        socket.send(json.dumps({"id": "1", "type": "start", "payload": {"query": subscription}}))
        live = json.loads(socket.recv(30))
        assert live["type"] == "data"
        assert live["payload"]["data"]["pipelineRunLogs"]["messages"]
