"""The comparison with other engines: its worker processes, its ratios, and the reasons for absent peers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PEERS = Path(__file__).parent
sys.path.append(str(PEERS))

import install  # noqa: E402
import pool  # noqa: E402
import report  # noqa: E402
from pool import Figure, Worker  # noqa: E402
from prepare import AbsentError, Peer, llama_bench_peer, our_peer  # noqa: E402

OURS = Peer("ours", "cpu int8", "", ())
Q8 = Peer("llama.cpp", "Q8_0", "m.gguf:0", ())
Q8_FLASH = Peer("llama.cpp", "Q8_0 flash", "m.gguf:1", ())
Q4 = Peer("llama.cpp", "Q4_0", "m.gguf:0", ())


@pytest.fixture
def worker(tiny_artifact: Path) -> Iterator[Worker]:
    """Our engine in its process, with the tiny artifact (2 rows, context 64)."""
    made = Worker(our_peer(tiny_artifact, "portable fp32", ()), Path(sys.executable), 1, 64)
    yield made
    made.close()


def test_our_engine_answers_through_its_worker(
    worker: Worker, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from edgellama.exporter.checkpoint.open import open_checkpoint
    from edgellama.exporter.proof.float_reference import reference_logits

    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 256, 40)]
    assert "MindSpore Lite" in worker.version
    assert worker.ask(op="prefill", tokens=tokens)["seconds"] > 0
    steps = worker.ask(op="decode", tokens=tokens, steps=5)["seconds"]
    assert len(steps) == 5 and min(steps) > 0
    file = tmp_path / "logits.npy"
    worker.ask(op="logits", tokens=tokens, first=20, file=str(file))
    expected, _ = reference_logits(open_checkpoint(tiny_checkpoint()), np.array(tokens, np.int32), [*range(20, 40)])
    np.testing.assert_allclose(np.load(file), expected, atol=2e-3 * np.ptp(expected))


def test_figures_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round measures every engine once, with new prompts, and leaves out the warm-ups."""
    asked: list[tuple[str, dict[str, Any]]] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, **command: Any) -> dict[str, Any]:
            asked.append((self.name, command))
            if command["op"] == "prefill":
                return {"seconds": float(len(asked))}
            return {"seconds": [100.0] * pool.WARM_UP + [float(len(asked))] * (command["steps"] - pool.WARM_UP)}

    monkeypatch.setattr(pool, "PAUSE", 0)
    workers: Any = {"a": Fake("a"), "b": Fake("b")}
    found = pool.measure(workers, vocabulary=50, prompts=[7], depths=[9], steps=3, rounds=2)
    prefills = [(name, tuple(c["tokens"])) for name, c in asked if c["op"] == "prefill"]
    assert [name for name, _ in prefills] == ["a", "a", "b", "b"] * 3
    assert len({tokens for _, tokens in prefills}) == 6  # two per round, the same for both engines
    decodes = [(name, tuple(c["tokens"]), c["steps"]) for name, c in asked if c["op"] == "decode"]
    assert [name for name, *_ in decodes] == ["a", "b"] * 3
    assert {(tokens, steps) for _, tokens, steps in decodes} == {(decodes[0][1], 3 + pool.WARM_UP)}
    # asked 1..4 are round 0 of prefill (dropped), the measured ones of a are 6 and 10; decode begins at 13
    assert [(f.worker, f.kind, f.samples) for f in found] == [
        ("a", "prefill", [6.0, 10.0]),
        ("b", "prefill", [8.0, 12.0]),
        ("a", "decode", [15.0, 17.0]),
        ("b", "decode", [16.0, 18.0]),
    ]


def test_ratios_use_the_fastest_peer_of_each_limit() -> None:
    peers = {peer.name: peer for peer in (OURS, Q8, Q8_FLASH, Q4)}
    figures = [
        Figure(OURS.name, "decode", 128, [3.0, 4.0, 9.0]),
        Figure(Q8.name, "decode", 128, [8.0, 10.0, 10.0]),
        Figure(Q8_FLASH.name, "decode", 128, [20.0, 20.0, 20.0]),
        Figure(Q4.name, "decode", 128, [1.0, 1.0, 1.0]),
        Figure(OURS.name, "prefill", 512, [6.0]),
        Figure(Q8_FLASH.name, "prefill", 512, [12.0]),
        Figure(Q4.name, "prefill", 512, [10.0]),
    ]
    found = {(r["kind"], r["tokens"], r["peer"]): r for r in report.ratios(figures, peers)}
    assert set(found) == {("decode", 128, Q8.name), ("prefill", 512, Q4.name)}
    decode = found["decode", 128, Q8.name]
    assert (decode["ratio"], decode["ratio_of_rounds"], decode["limit"]) == (0.4, 0.4, 0.75)
    assert (decode["smallest"], decode["largest"]) == (0.375, 0.9)
    assert found["prefill", 512, Q4.name]["ratio"] == 0.6


def test_lower_instruction_sets_and_foreign_builds_have_ratios_of_their_own() -> None:
    ours = [our_peer(Path("a"), "cpu int8", (), isa) for isa in (None, "avx2")]
    bench = [llama_bench_peer("./llama-bench -rtr 1", Path(f"m-{kind}.gguf")) for kind in ("q8_0", "Q4_0")]
    assert [peer.name for peer in [*ours, *bench]] == [
        "ours cpu int8", "ours cpu int8 avx2", "llama-bench m-q8_0", "llama-bench m-Q4_0",
    ]  # fmt: skip
    assert json.loads(bench[0].model) == ["./llama-bench", "-rtr", "1", "m-q8_0.gguf"]
    samples = dict(zip([*ours, *bench], ([4.0], [3.0], [5.0], [2.0]), strict=True))
    figures = [Figure(peer.name, "decode", 128, values) for peer, values in samples.items()]
    found = report.ratios(figures, {peer.name: peer for peer in samples})
    assert [(r["ours"], r["peer"], r["ratio"]) for r in found] == [("ours cpu int8", "llama-bench m-q8_0", 0.8)]


@pytest.mark.parametrize(("help_text", "depth"), [("  -d, --n-depth <n>", "-d 9"), ("  -gp <pp,tg>  x", "-gp 9,7")])
def test_a_llama_bench_is_called_with_the_options_that_it_has(tmp_path: Path, help_text: str, depth: str) -> None:
    """The program here notes its arguments, and reports two repetitions, the second of 5 ms and 7 ms."""
    program, log = tmp_path / "llama-bench", tmp_path / "log"
    program.write_text(
        f"#!/bin/sh\n[ $1 = --help ] && echo '{help_text}' && exit\necho $@ >> {log}\n"
        'case "$*" in *"-n 0 -gp"*|*-d*) ns=7000000;; *) ns=5000000;; esac\n'
        'echo "[{\\"build_commit\\": \\"abc\\", \\"samples_ns\\": [9000000000, $ns]}]"\n'
    )
    program.chmod(0o755)
    made = Worker(llama_bench_peer(f"{program} -rtr 1", Path("m.gguf")), Path(sys.executable), 3, 64)
    try:
        assert made.version == "llama-bench abc"
        assert made.ask(op="prefill", tokens=[1] * 9)["seconds"] == 0.005
        assert made.ask(op="decode", tokens=[1] * 9, steps=7)["seconds"] == [0.001] * 7
    finally:
        made.close()
    called = log.read_text().splitlines()
    assert all(line.startswith("-rtr 1 -m m.gguf -t 3 -r 2 -o json ") for line in called)
    assert "-p 9 -n 0" in called[1] and depth in called[2]


def test_accuracy_is_compared_at_equal_width() -> None:
    peers = {peer.name: peer for peer in (OURS, Q8, Q8_FLASH, Q4)}
    accuracy = {
        OURS.name: {"kl_mean": 1.0, "bits_per_weight": 8.5},
        Q8.name: {"kl_mean": 4.0, "bits_per_weight": 8.5},
        Q4.name: {"kl_mean": 9.0, "bits_per_weight": 4.5},
    }
    assert report.accuracy_ratios(accuracy, peers) == [
        {"ours": OURS.name, "peer": Q8.name, "kl_ratio": 0.25, "bits": [8.5, 8.5]}
    ]


def test_the_report_shows_absent_peers_and_missed_limits(capsys: pytest.CaptureFixture[str]) -> None:
    figure = {"engine": OURS.name, "kind": "decode", "tokens": 128, "median": 0.00525}
    report.show(
        {
            "machine": {"cpu": "a processor"},
            "settings": {"threads": 2, "rounds": 5, "prompts": [], "depths": [128]},
            "engines": {OURS.name: {}},
            "absent": {"openvino int8 PA": "no wheel for this system"},
            "figures": [figure],
            "ratios": [
                {"kind": "decode", "tokens": 128, "ours": OURS.name, "against": "llama.cpp Q8_0", "peer": Q8.name}
                | {"ratio": 0.8, "ratio_of_rounds": 0.79, "smallest": 0.71, "largest": 0.93, "limit": 0.75}
            ],
            "accuracy": {},
            "accuracy_ratios": [],
        }
    )
    text = capsys.readouterr().out
    assert "5.25" in text and "openvino int8 PA: absent: no wheel for this system" in text and "0.80" in text
    assert "MISSED" in text and "0.71 to 0.93" in text


@pytest.mark.parametrize(
    ("peer", "python", "reason"),
    [
        (our_peer(Path("nowhere"), "x", ()), sys.executable, "no such folder"),
        (llama_bench_peer("/nowhere/llama-bench", Path("m.gguf")), sys.executable, "No such file"),
        (Peer("unheard of", "x", "nowhere", ()), sys.executable, "unheard of"),
        (Peer("ours", "x", "nowhere", ()), "/nowhere/python", "No such file"),
    ],
)
def test_a_peer_that_does_not_start_is_absent_with_its_reason(peer: Peer, python: str, reason: str) -> None:
    with pytest.raises(AbsentError, match=reason):
        Worker(peer, Path(python), 1, 64)


def test_the_error_names_the_signal_that_killed_a_process(tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\necho last words >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    with pytest.raises(AbsentError, match=r"SIGSEGV.*last words"):
        Worker(Q8, crash, 1, 64)


def test_a_context_that_is_too_small_is_an_error(tiny_artifact: Path) -> None:
    with pytest.raises(AbsentError, match="the artifact's context is 64; this run needs 100"):
        Worker(our_peer(tiny_artifact, "portable fp32", ()), Path(sys.executable), 1, 100)


def test_reasons_of_failed_installations_are_kept(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    assert set(install.not_installed(python)) == set(install.PEERS)  # no environment: none of them
    python.parent.mkdir()
    python.touch()
    assert install.not_installed(python) == {}
    (tmp_path / install.ABSENT).write_text(json.dumps({"openvino": "no wheel"}))
    assert install.not_installed(python) == {"openvino": "no wheel"}
