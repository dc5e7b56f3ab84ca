"""The small artifacts and sessions of tests/data/compatibility, and the program that writes those of this release.

    PYTHONPATH=.:tests .venv/bin/python -m support.compatibility

replaces the folder of this release's version; the folders of older releases stay as those releases wrote them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from support.child import REPOSITORY, run_python

FOLDER = REPOSITORY / "tests" / "data" / "compatibility"
EXPECTED = "expected.json"  # {"prompt": ids, "tokens": {artifact: ids}}, beside the artifacts
MERGED = "merged-cpu-int8"
# A session of the artifact ADAPTED with the LoRA adapter in the folder ADAPTER; under ADAPTER, `expected.json` has the
# tokens that continue it.
ADAPTED, ADAPTER, ADAPTER_SCALE, ADAPTER_SESSION = "cpu-int8", "adapter", 0.5, "adapter.session"
PROMPT, COUNT = list(b"A small text, "), 16
# Name of the artifact -> model, target, weights, and the ABI of the kernels that it needs. A merged adapter needs the
# newest format of the manifest.
KINDS = {
    "portable-fp32": ("llama", "portable", "fp32", None),
    "cpu-int8": ("llama", "cpu", "int8", 2),
    "cpu-int4": ("llama", "cpu", "int4", 2),
    "qwen3-cpu-int8": ("qwen3", "cpu", "int8", 3),
    "awq-cpu-w4g32": ("awq", "cpu", "w4g32", 4),
    MERGED: ("llama", "cpu", "int8", 2),
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
# As small as the formats of the weights permit.
CONFIG = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}

# What a child process with MindSpore Lite does with each of several artifacts: the error, or tokens and sessions.
RUN = """
import json, sys
from pathlib import Path
from edgellama import LlamaForCausalLM
from edgellama.errors import UserError

found = {}
given = json.load(sys.stdin)
for path in map(Path, given["artifacts"]):
    try:
        model = LlamaForCausalLM.from_pretrained(path)
    except UserError as error:
        found[str(path)] = {"error": str(error)}
        continue
    ids = model.generate([given["prompt"]], max_new_tokens=given["count"], eos_token_id=()).tolist()
    answer = found[str(path)] = {"tokens": ids[0][len(given["prompt"]):]}
    session = model.session()
    file = path.with_name(path.name + ".session")
    if given["save"]:
        session.generate(given["prompt"], max_new_tokens=4, eos_token_id=())
        session.save(file)
    elif file.exists():
        try:
            session.load(file)
            answer["session"] = list(session.ids)
            answer["continued"] = session.generate([], max_new_tokens=4, eos_token_id=()).tolist()
        except UserError as error:
            answer["session error"] = str(error)
print(json.dumps(found))
"""

# The same for the session with an adapter: the tokens that continue it. With "save", it is written first.
RUN_ADAPTED = """
import json, sys
from pathlib import Path
from edgellama import LlamaForCausalLM

given = json.load(sys.stdin)
release = Path(given["release"])
model = LlamaForCausalLM.from_pretrained(release / given["artifact"])
model.load_adapter(release / given["adapter"], scale=given["scale"])
session = model.session()
if given["save"]:
    session.generate(given["prompt"], max_new_tokens=4, eos_token_id=())
    session.save(release / given["session"])
session.load(release / given["session"])
given["ids"] = list(session.ids)
given["continued"] = session.generate([], max_new_tokens=4, eos_token_id=()).tolist()
model.disable_adapters()
given["base"] = model.generate([given["ids"]], max_new_tokens=4, eos_token_id=())[0, -4:].tolist()
print(json.dumps(given))
"""


def releases() -> list[Path]:
    """Returns the folders of tests/data/compatibility: a release, or another state of the formats, each."""
    return sorted(path for path in FOLDER.iterdir() if path.is_dir())


def artifacts(release: Path) -> list[Path]:
    return sorted(path.parent for path in release.glob("*/manifest.json"))


def load_artifacts(paths: list[Path], save: bool = False) -> dict[Path, dict[str, Any]]:
    """Loads artifacts in one child process, and returns for each of them:

    - "error": why it was refused; nothing else then
    - "tokens": COUNT greedy tokens after PROMPT
    - "session", "continued": the text of the session file beside the artifact, and 4 more tokens; or "session error"

    With `save`, the child writes the session file, with PROMPT and 4 tokens, instead.
    """
    given = {"artifacts": list(map(str, paths)), "prompt": PROMPT, "count": COUNT, "save": save}
    return {Path(path): answer for path, answer in run_python(RUN, input=json.dumps(given)).items()}


def load_adapted(release: Path, save: bool = False) -> dict[str, Any]:
    """Loads the session with an adapter of a release. Returns "ids", "continued", and "base": without the adapter."""
    names = {"artifact": ADAPTED, "adapter": ADAPTER, "session": ADAPTER_SESSION, "scale": ADAPTER_SCALE}
    given = {"release": str(release), "prompt": PROMPT, "save": save, **names}
    found: dict[str, Any] = run_python(RUN_ADAPTED, input=json.dumps(given))
    return found


def write_adapter(base: Path, folder: Path) -> None:
    from support.adapters import make_adapter

    make_adapter(base, folder, r=1, target_modules=["q_proj", "down_proj"])
    (folder / "README.md").unlink()  # a page for the hub
    config = folder / "adapter_config.json"
    values = {**json.loads(config.read_text(encoding="utf-8")), "base_model_name_or_path": base.name}
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    import edgellama
    from support.adapters import make_adapter
    from support.checkpoints import export_all, make_checkpoint
    from support.quantized_files import awq, write_quantized

    release = FOLDER / edgellama.__version__
    shutil.rmtree(release, ignore_errors=True)
    sizes = {"context": 64, "buckets": (4,)}
    folder = Path("build", "compatibility")  # relative, because the manifest contains it
    for kind in sorted({kind for kind, *_ in KINDS.values()} - {"awq"}):
        make_checkpoint(REPOSITORY / folder / f"tiny-{kind}", model_type=kind, head_dim=16, **CONFIG)
    shutil.rmtree(REPOSITORY / folder / "awq", ignore_errors=True)
    write_quantized(REPOSITORY / folder / "tiny-llama", REPOSITORY / folder / "awq", lambda w: awq(w, 32), AWQ)
    shutil.copytree(REPOSITORY / folder / "awq" / "quantized", REPOSITORY / folder / "tiny-awq", dirs_exist_ok=True)
    make_adapter(REPOSITORY / folder / "tiny-llama", REPOSITORY / folder / "adapter")
    jobs = [
        {"model": folder / f"tiny-{kind}", "out": release / name, "target": target, "weights": weights, **sizes}
        for name, (kind, target, weights, _) in KINDS.items()
    ]
    export_all(
        [{**job, "lora": [[str(folder / "adapter"), 0.5]]} if job["out"].name == MERGED else job for job in jobs]
    )
    tokens = {path.name: answer["tokens"] for path, answer in load_artifacts(artifacts(release), save=True).items()}
    write_adapter(REPOSITORY / folder / "tiny-llama", release / ADAPTER)
    adapted = load_adapted(release, save=True)["continued"]
    text = json.dumps({"prompt": PROMPT, "tokens": tokens, ADAPTER: adapted})
    (release / EXPECTED).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
