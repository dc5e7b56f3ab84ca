"""schemathesis against the endpoint of a real model: no status 5xx, and every response is as /openapi.json says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgellama.model import LlamaForCausalLM
from support.exported import export_tiny
from support.serving import TOOL_TEMPLATE, serving, with_template

HERE = Path(__file__).parent
CASES = 2000


@pytest.mark.slow
def test_every_response_conforms_to_the_description(tmp_path: Path) -> None:
    artifact = export_tiny("cpu")  # this target has every feature
    model = LlamaForCausalLM.from_pretrained(with_template(artifact, tmp_path / "tiny", TOOL_TEMPLATE), threads=1)
    with serving(model, hosts={"127.0.0.1"}, api_key="sesame", queue=6) as (service, address):
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")]
        command += ["run", f"{address}/openapi.json", "--header", "Authorization: Bearer sesame", "--max-examples=400"]
        paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr
        tried = re.search(r"([\d,]+) generated", done.stdout)
        assert tried is not None and int(tried[1].replace(",", "")) >= CASES, done.stdout[-1000:]
        counted = re.findall(r'edgellama_requests_total{.*status="(\d+)"} (\S+)', service.metrics.text().decode())
        answered = {status: sum(float(count) for one, count in counted if one == status) for status, _ in counted}
        assert not [status for status in answered if status >= "500"]
        assert answered["200"] > 200 and answered["400"] > 200
