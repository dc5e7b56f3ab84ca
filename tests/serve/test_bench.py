"""`python -m edgellama.serve.bench`: a report of a real server in a separate process, on the tiny artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgellama.serve import bench
from support.serving import with_template


def test_the_report_compares_all_clients_with_one(
    tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = with_template(tiny_artifact, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)  # the server is found from any folder
    options = ["--clients", "2", "--tokens", "4", "--rounds", "2", "--threads", "1"]
    assert bench.main([str(artifact), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["clients"], report["tokens"], report["same_text_as_alone"]) == (2, 4, True)
    assert [len(samples) for samples in report["samples"].values()] == [2, 2]
    assert report["ratio"] > 0 and report["median_seconds_to_first_token"] > 0
    text = bench.table(report)
    assert "2 at once" in text and "same text as alone: yes" in text


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert "the server did not start" in error and "no such folder" in error
