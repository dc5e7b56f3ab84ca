"""The configurations of the deployment page: two servers behind nginx, and the unit of systemd."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgellama.model import LlamaForCausalLM
from edgellama.serve.app import Service
from support.child import REPOSITORY
from support.serving import answered, client, serving
from support.toy_model import load

FOLDER = REPOSITORY / "runtime" / "serve" / "deployment"
HOSTS = {"127.0.0.1", "chat.example"}
Running = tuple[Service, str]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def models(folder: Path, count: int) -> Iterator[LlamaForCausalLM]:
    for number in range(count):
        (folder / str(number)).mkdir()
        yield load(folder / str(number), batch=2, eos_token_id=())


def started(folder: Path, ports: list[str]) -> subprocess.Popen[bytes]:
    """Starts nginx with the page's configuration, but other ports and no TLS. The last port is nginx's own."""
    text = (FOLDER / "nginx.conf").read_text()
    for old, new in (("8001", ports[0]), ("8002", ports[1]), ("443 ssl", f"127.0.0.1:{ports[2]}")):
        assert old in text
        text = text.replace(old, new)
    text = re.sub(r"^ *ssl_certificate.*\n", "", text, flags=re.MULTILINE)
    paths = "".join(
        f"{name}_temp_path {folder}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; daemon off; user root; events {{}} http {{ access_log off; {paths} {text} }}"
    )
    nginx = shutil.which("nginx") or "nginx"
    return subprocess.Popen([nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors")])


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_two_servers_behind_nginx(tmp_path: Path) -> None:
    first, second = models(tmp_path, 2)
    with serving(first, hosts=HOSTS) as one, serving(second, hosts=HOSTS) as other:
        port = free_port()
        (tmp_path / "proxy").mkdir()
        proxy = started(tmp_path / "proxy", [one[1].rsplit(":", 1)[1], other[1].rsplit(":", 1)[1], str(port)])
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    httpx.get(f"{address}/health")
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            check_affinity(address, one, other)
            assert httpx.get(f"{address}/metrics").status_code == 404
            one[0].scheduler.close()  # shutting down: answers 503
            api = client(address)
            for number in range(10):
                api.completions.create(
                    model=one[0].name, prompt="w1", max_tokens=2, extra_headers={"X-Session-Id": str(number)}
                )
        finally:
            proxy.terminate()
            proxy.wait()


def check_affinity(address: str, one: Running, other: Running) -> None:
    """Check that each conversation stays with one server, both are used, and streams pass."""
    api = client(address)
    homes = []
    for number in range(20):
        before = answered(one[0], "/v1/completions"), answered(other[0], "/v1/completions")
        prompt = [int(digit) for digit in f"{number:02}"] * 8
        for turn in range(3):
            done = api.completions.create(
                model=one[0].name,
                prompt=prompt,
                max_tokens=4,
                temperature=0,
                stream=turn == 1,
                extra_headers={"X-Session-Id": f"conversation {number}"},
            )
            if turn == 1:
                assert len([chunk for chunk in done]) > 0
        counts = answered(one[0], "/v1/completions") - before[0], answered(other[0], "/v1/completions") - before[1]
        assert sorted(counts) == [0, 3]
        homes.append(counts.index(3))
    assert set(homes) == {0, 1}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = (FOLDER / "edgellama.service").read_text()
    command = "/opt/edgellama/bin/edgellama"
    assert command in unit  # it is not installed here
    (tmp_path / "edgellama.service").write_text(unit.replace(command, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "edgellama.service")], capture_output=True, text=True
    )
    assert done.returncode == 0 and "edgellama.service" not in done.stderr, done.stderr


def test_the_page_names_what_there_is() -> None:
    text = (FOLDER / "DEPLOYMENT.md").read_text()
    for path in FOLDER.iterdir():
        assert path.name == "DEPLOYMENT.md" or f"({path.name})" in text
    unit = (FOLDER / "edgellama.service").read_text()
    grace = float(re.search(r"TimeoutStopSec=(\d+)", unit)[1])  # type: ignore[index]
    from edgellama.serve import command

    assert grace > command.GRACE_SECONDS
