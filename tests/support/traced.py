"""`python -m support.traced CONFIG.json OUT TOKENS` writes MindSpore's trace of a portable step graph to OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support.child import run_support


def trace_in_child(config: dict[str, Any], folder: Path, tokens: int = 8) -> Any:
    """Returns the traced model (mind_ir_pb2.ModelProto) of a config, for 2 rows and context 32."""
    from edgellama.exporter.mindir.schema import pb

    (folder / "config.json").write_text(json.dumps(config))
    run_support("traced", str(folder / "config.json"), str(folder / "traced"), str(tokens))
    model = pb.ModelProto()
    model.ParseFromString((folder / "traced").read_bytes())
    return model


if __name__ == "__main__":
    from edgellama.exporter.graph_spec import Shape
    from edgellama.exporter.network.config import LlamaConfig
    from edgellama.exporter.opsets import portable
    from edgellama.exporter.trace import trace

    network = LlamaConfig.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    traced = trace(network, Shape(2, int(sys.argv[3]), 32), portable)
    Path(sys.argv[2]).write_bytes(traced.SerializeToString())
