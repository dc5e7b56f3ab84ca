"""python traced.py CONFIG.json OUT [tokens]: MindSpore's trace of a portable step graph, as the file OUT."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def trace_in_child(config: dict[str, Any], folder: Path, tokens: int = 8) -> Any:
    """The traced model (mind_ir_pb2.ModelProto) of a config, 2 rows, context 32."""
    from exporter.mindir_schema import pb

    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, __file__, str(folder / "config.json"), str(folder / "traced"), str(tokens)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = pb.ModelProto()
    model.ParseFromString((folder / "traced").read_bytes())
    return model


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from exporter.graph_spec import Shape
    from exporter.network.config import LlamaConfig
    from exporter.opsets import portable
    from exporter.trace import trace

    network = LlamaConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    traced = trace(network, Shape(2, int(sys.argv[3]), 32), portable)
    Path(sys.argv[2]).write_bytes(traced.SerializeToString())
