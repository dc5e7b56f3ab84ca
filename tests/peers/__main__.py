"""python tests/peers ARTIFACT...: measures artifacts and other engines with the same weights, prompts and threads.

Every engine runs in its own process. All engines are loaded first and warmed up. Then every round measures each engine
once, so that a slow minute of the machine affects all of them; the printed figures are medians over the rounds. Prompts
are random token ids, new ones in each round, so that no prefix cache helps. All engines decode greedily.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from accuracy import compare  # noqa: E402
from install import not_installed  # noqa: E402
from pool import Worker, measure  # noqa: E402
from prepare import AbsentError, Models, Peer, llama_bench_peer, our_peer  # noqa: E402
from report import build_report, show  # noqa: E402

from edgellama.artifact.manifest import Artifact  # noqa: E402
from edgellama.exporter.checkpoint.source import resolve  # noqa: E402
from edgellama.kernels.cpu.library import available_isas  # noqa: E402

SPARE_POSITIONS = 64  # after the deepest context, for the measured decode steps
SLOW_FORMATS = {"F32", "BF16", "fp16", "fp32", "float32", "bfloat16"}  # --quick leaves them out


def parse_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python tests/peers", description=__doc__)
    parser.add_argument("artifacts", nargs="+", type=Path, help="artifacts of one model, exported from a GGUF file")
    parser.add_argument(
        "--python", type=Path, default=ROOT / ".venv-peers/bin/python", help="the Python that has the peers"
    )
    parser.add_argument("--models", type=Path, default=ROOT / "build/peers", help="folder of the converted models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=number_list, default=[128, 512], help="prompt lengths (default: 128,512)")
    parser.add_argument("--depths", type=number_list, default=[128, 4096], help="context depths (default: 128,4096)")
    parser.add_argument("--steps", type=int, default=32, help="decode steps per measurement (default: %(default)s)")
    parser.add_argument(
        "--only", default="", help="engines whose name contains one of these, for example llama.cpp,int8"
    )
    parser.add_argument("--no-accuracy", dest="accuracy", action="store_false", help="do not measure KL divergences")
    parser.add_argument(
        "--llama-bench", metavar="COMMAND", help="also measure this llama-bench program; may contain its options"
    )
    parser.add_argument(
        "--llama-model", type=file_list, default=[], metavar="FILE,...", help="the GGUF files that it reads"
    )
    parser.add_argument(
        "--isas", action="store_true", help="also measure ours with each lower instruction set that this CPU has"
    )
    parser.add_argument(
        "--quick", action="store_true", help="three minutes: 3 rounds at 128 tokens, 8- and 4-bit formats, no accuracy"
    )
    parser.add_argument("--json", type=Path, help="write the report to this file")
    options = parser.parse_args()
    if bool(options.llama_bench) != bool(options.llama_model):
        parser.error("--llama-bench and --llama-model belong together; one is missing")
    if options.quick:
        options.rounds, options.prompts, options.depths, options.steps, options.accuracy = 3, [128], [128], 16, False
    return options


def file_list(text: str) -> list[Path]:
    """Comma-separated files. Raises ArgumentTypeError for one that does not exist."""
    files = [Path(part) for part in text.split(",")]
    if absent := [str(file) for file in files if not file.is_file()]:
        raise argparse.ArgumentTypeError(f"no such file: {', '.join(absent)}")
    return files


def number_list(text: str) -> list[int]:
    """Comma-separated numbers."""
    return [int(part) for part in text.split(",")]


def peer_makers(models: Models) -> dict[str, Callable[[], Peer]]:
    """name -> function that makes the peer's model."""
    peers: dict[str, Callable[[], Peer]] = {}
    for kind in ("F32", "BF16", "Q8_0", "Q4_0"):
        peers[f"llama.cpp {kind}"] = lambda kind=kind: models.llama_cpp(kind, False)
        peers[f"llama.cpp {kind} flash"] = lambda kind=kind: models.llama_cpp(kind, True)
    for kind in ("fp16", "int8", "int4"):
        for backend in ("PA", "SDPA"):
            peers[f"openvino {kind} {backend}"] = lambda kind=kind, backend=backend: models.openvino(kind, backend)
    for kind in ("fp32", "int4"):
        peers[f"onnxruntime {kind}"] = lambda kind=kind: models.onnxruntime(kind)
    for kind in ("float32", "bfloat16"):
        peers[f"pytorch {kind}"] = lambda kind=kind: models.pytorch(kind)
    return peers


def main() -> int:
    """Run the comparison. Returns the exit status."""
    options = parse_options()
    artifacts = [Artifact.open(path) for path in options.artifacts]
    sources = {artifact.manifest.source.model for artifact in artifacts}
    if len(sources) > 1:
        sys.exit(f"error: the artifacts come from {', '.join(sorted(sources))}; needed: one model")
    gguf = resolve(sources.pop()).path
    if gguf.suffix != ".gguf":
        sys.exit(f"error: {gguf} is not a GGUF file, and llama.cpp needs one")
    models = Models(options.models, options.python, gguf)
    absent = not_installed(options.python)
    keep = [part for part in options.only.split(",") if part]
    context = max(options.depths + options.prompts) + SPARE_POSITIONS

    isas = [None, *(available_isas()[:-1] if options.isas else [])]
    ready = [
        our_peer(a.path, f"{a.manifest.target} {a.manifest.weights_format}", weight_files(a), isa)
        for isa in isas
        for a in artifacts
    ]
    ready += [llama_bench_peer(options.llama_bench, file) for file in options.llama_model]
    makers: dict[str, Callable[[], Peer]] = {peer.name: lambda peer=peer: peer for peer in ready}
    makers.update(peer_makers(models))
    workers: dict[str, Worker] = {}
    try:
        for name, make in makers.items():
            if keep and not any(part in name for part in keep):
                continue
            if options.quick and set(name.split()) & SLOW_FORMATS:
                continue
            engine = name.split()[0]
            if engine in absent:
                continue
            print(f"loading {name}", file=sys.stderr)
            try:
                peer = make()
                python = Path(sys.executable) if peer.engine in ("ours", "llama-bench") else options.python
                workers[name] = Worker(peer, python, options.threads, context)
            except AbsentError as reason:
                absent[name] = str(reason)
        vocabulary = artifacts[0].manifest.config["vocab_size"]
        figures = measure(workers, vocabulary, options.prompts, options.depths, options.steps, options.rounds)
        agreement = compare(workers, gguf, artifacts[0].path) if options.accuracy else {}
    finally:
        for worker in workers.values():
            worker.close()
    report = build_report(workers, figures, agreement, absent, vars(options))
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def weight_files(artifact: Artifact) -> tuple[Path, ...]:
    """The files that hold the artifact's weights."""
    manifest = artifact.manifest
    if manifest.weights is not None:
        return (artifact.file(manifest.weights.file),)
    return tuple(artifact.file(data.file) for graph in manifest.graphs for data in graph.data)


if __name__ == "__main__":
    sys.exit(main())
