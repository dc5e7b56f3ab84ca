"""Converts the same weights for each peer, once, with that peer's own tools.

The source is a GGUF file. llama.cpp quantizes from it by way of float32, so that apart from the source's own rounding
each format is rounded once. The others read a Hugging Face folder of the weights in float32.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LLAMA_CPP_TYPES = {"F32": 0, "BF16": 32, "Q8_0": 7, "Q4_0": 2}  # enum llama_ftype
QUANTIZE = """
import sys, llama_cpp as C
options = C.llama_model_quantize_default_params()
options.ftype, options.nthread, options.allow_requantize = int(sys.argv[3]), 2, True
sys.exit(C.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), options))
"""


@dataclass(frozen=True)
class Peer:
    """One engine with one weight format.

    Attributes:
        engine: a key of worker.ENGINES
        format: words that describe the weights and settings
        model: the worker's MODEL argument
        files: the files that hold the weights
    """

    engine: str
    format: str
    model: str
    files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Engine and format, as in the report."""
        return f"{self.engine} {self.format}"

    @property
    def returns_logits(self) -> bool:
        """Whether accuracy is measured. Of llama.cpp only without flash attention, which does not change weights."""
        return self.engine == "ours" or (self.engine == "llama.cpp" and "flash" not in self.format)

    def matches(self, engine: str, *words: str) -> bool:
        """Whether this is the engine, and its format contains all words."""
        return self.engine == engine and set(words) <= set(self.format.split())


def our_peer(folder: Path, name: str, files: tuple[Path, ...], isa: str | None = None) -> Peer:
    """An artifact in our runtime. isa: the last instruction set that the kernels may use; None takes the fastest."""
    return Peer("ours", f"{name} {isa}" if isa else name, json.dumps([str(folder), isa]), files)


def llama_bench_peer(command: str, file: Path) -> Peer:
    """A model file in a llama-bench program. command: the program and its options, as in a shell."""
    return Peer("llama-bench", file.stem, json.dumps([*shlex.split(command), str(file)]), (file,))


class AbsentError(Exception):
    """A peer that cannot run here. The message is the reason."""


class Models:
    """Makes the converted models in `folder`. `python` is the interpreter that has the peers."""

    def __init__(self, folder: Path, python: Path, gguf: Path) -> None:
        self.folder, self.python, self.gguf = folder, python, gguf
        folder.mkdir(parents=True, exist_ok=True)

    def llama_cpp(self, kind: str, flash_attention: bool) -> Peer:
        """kind: a key of LLAMA_CPP_TYPES. Flash attention is faster in prefill and slower deep in the context."""
        float32 = self._quantized(self.gguf, "F32")
        path = float32 if kind == "F32" else self._quantized(float32, kind)
        name = f"{kind} flash" if flash_attention else kind
        return Peer("llama.cpp", name, f"{path}:{int(flash_attention)}", (path,))

    def openvino(self, kind: str, backend: str) -> Peer:
        """kind: fp16, int8 (one scale per row) or int4 (groups of 64). backend: PA (paged attention) or SDPA."""
        out = self.folder / f"openvino-{kind}"
        if not (out / "openvino_model.bin").exists():
            export = [str(self.python.parent / "optimum-cli"), "export", "openvino", "-m", str(self.hugging_face())]
            groups = ["--group-size", "64", "--ratio", "1.0"] if kind == "int4" else []
            self._run([*export, "--task", "text-generation-with-past", "--weight-format", kind, *groups, str(out)])
        return Peer("openvino", f"{kind} {backend}", f"{out}:{backend}", (out / "openvino_model.bin",))

    def onnxruntime(self, kind: str) -> Peer:
        """kind: fp32 or int4."""
        out = self.folder / f"onnxruntime-{kind}"
        if not (out / "genai_config.json").exists():
            builder = [str(self.python), "-m", "onnxruntime_genai.models.builder", "-i", str(self.hugging_face())]
            # level 4: int8 activations, the fastest choice on a CPU
            level = ["--extra_options", "int4_accuracy_level=4"] if kind == "int4" else []
            cache = str(self.folder / "onnxruntime-cache")
            self._run([*builder, "-m", "local", "-o", str(out), "-p", kind, "-e", "cpu", "-c", cache, *level])
        return Peer("onnxruntime", kind, str(out), tuple(sorted(out.glob("model.onnx*"))))

    def pytorch(self, dtype: str) -> Peer:
        """dtype: float32 or bfloat16."""
        folder = self.hugging_face()
        return Peer("pytorch", dtype, f"{folder}:{dtype}", (folder / "model.safetensors",))

    def hugging_face(self) -> Path:
        """A folder for transformers with the weights in float32 and the tokenizer."""
        out = self.folder / "hugging-face"
        if not (out / "config.json").exists():
            from safetensors.numpy import save_file

            from edgellama.exporter.checkpoint.open import open_checkpoint

            out.mkdir(exist_ok=True)
            checkpoint = open_checkpoint(self.gguf)
            tensors = {name: np.ascontiguousarray(checkpoint.tensor(name)) for name in checkpoint.names()}
            save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
            for name, content in checkpoint.tokenizer_files().items():
                (out / name).write_bytes(content)
            (out / "config.json").write_text(json.dumps(checkpoint.config.to_dict()))
        return out

    def _quantized(self, source: Path, kind: str) -> Path:
        out = self.folder / f"{self.gguf.stem}.{kind}.gguf"
        if not out.exists():
            part = out.with_suffix(".part")
            self._run([str(self.python), "-c", QUANTIZE, str(source), str(part), str(LLAMA_CPP_TYPES[kind])])
            part.rename(out)
        return out

    def _run(self, command: list[str]) -> None:
        print(f"  {' '.join(Path(part).name if '/' in part else part for part in command[:6])} ...", file=sys.stderr)
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise AbsentError(f"{command[0]}: {error.strerror}") from error
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise AbsentError(f"{' '.join(command[:4])} ...: {lines[-1] if lines else done.returncode}")
