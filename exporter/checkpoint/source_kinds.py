"""What a model's files are, by their names: weights that an export reads, or something else, with the remedy.

The names are those of a folder on this machine or of a hub repository, so that nothing is downloaded in vain.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from edgellama.artifact.json_reader import parse_object
from edgellama.artifact.manifest import MANIFEST
from edgellama.errors import UserError

from .gguf.file import whole_name
from .lfs_pointer import pointers

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PROJECTOR = "mmproj"  # the vision part of a multimodal model, beside its text model
CONVERT = "save them as safetensors with transformers' from_pretrained(...).save_pretrained(...)"
# Suffixes of other formats, which have no weights that an export reads: what they are, as a plural.
FORMATS = {
    ".onnx": "an ONNX model",
    ".xml": "an OpenVINO model",
    ".h5": "a TensorFlow model",
    ".msgpack": "a Flax model",
    ".engine": "a TensorRT engine",
    ".plan": "a TensorRT engine",
    ".mlpackage": "a Core ML model",
    ".tflite": "a TensorFlow Lite model",
    ".litertlm": "a LiteRT model",
    ".task": "a MediaPipe model",
    ".nemo": "a NeMo model",
    ".pte": "an ExecuTorch model",
    ".rkllm": "an RKLLM model",
    ".mindir": "a MindIR graph",
    ".om": "an offline model of CANN",
    ".ckpt": "a checkpoint of MindSpore or PyTorch Lightning",
}
PICKLES = (".bin", ".pth", ".pt")
UNKNOWN = "an export needs its weights as safetensors or GGUF"
# First bytes of a file. A GGUF file is read whatever its name is.
MAGICS = {
    b"GGUF": "gguf",
    b"PK\x03\x04": "a pickle of PyTorch, or another archive",
    b"\x80\x02": "a pickle of PyTorch",
    b"lmgg": "a GGML file of before August 2023",
    b"fmgg": "a GGML file of before August 2023",
    b"tjgg": "a GGML file of before August 2023",
    b"\x89HDF": "an HDF5 file of TensorFlow",
}


def weights_of(names: Collection[str], where: str, choose: str) -> str | None:
    """Return the GGUF file that an export of these files reads; None if they have safetensors.

    Args:
        names: the paths of all files, relative to the folder or the repository.
        where: the folder or repository, for messages.
        choose: how MODEL names one of its GGUF files, with {} for the file's path.

    Returns:
        of a split GGUF file, the first part.

    Raises:
        UserError: the weights are in another form, are missing, or MODEL must say which GGUF file.
    """
    top = {name for name in names if "/" not in name}
    if SINGLE in top or INDEX in top:
        return None
    ggufs = whole_files(names)
    if len(ggufs) == 1:
        return next(iter(ggufs.values()))
    if ggufs:
        raise UserError(
            f"{where} has {len(ggufs)} GGUF files: {listing(ggufs)}. Choose one, for example "
            f"MODEL={choose.format(next(iter(ggufs)))}"
        )
    raise UserError(f"{where} {_reason(names, top)}")


def whole_files(names: Collection[str]) -> dict[str, str]:
    """Return the GGUF files with a text model: the path of each, without the number of a part -> its first part."""
    found: dict[str, str] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.suffix.lower() == ".gguf" and not path.name.lower().startswith(PROJECTOR):
            found.setdefault(str(path.with_name(whole_name(path.name))), name)
    return found


def listing(names: Collection[str], limit: int = 20) -> str:
    """Return the names as one line."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(list(names)[:limit]) + more


def _reason(names: Collection[str], top: Collection[str]) -> str:
    """Return why files without safetensors and GGUF cannot be exported, and the remedy."""
    suffixes = {PurePosixPath(name).suffix.lower(): name for name in sorted(names, reverse=True)}
    if "adapter_config.json" in top:
        return (
            "is an adapter (adapter_config.json), not a model. Merge it into its base model at the export: give the "
            "base model as MODEL, and the folder of the adapter as LORA"
        )
    if any(name.startswith("consolidated") for name in top) or "params.json" in top:
        return (
            "has the original layout of its publisher (params.json, consolidated.*). Export the Hugging Face version "
            "of the model, which has config.json and model.safetensors, or convert it with transformers"
        )
    if MANIFEST in top:
        return "is an artifact, the result of an export. Run it with `edgellama generate`, or export its checkpoint"
    pickles = [name for name in sorted(top) if PurePosixPath(name).suffix in PICKLES and "openvino" not in name]
    for suffix in (suffix for suffix in FORMATS if suffix in suffixes):
        if not pickles or suffix == ".xml":
            return f"has {FORMATS[suffix]} ({suffixes[suffix]}), and {UNKNOWN}. Export the model that it was made of"
    if pickles:
        return f"has its weights in {pickles[0]} only, a pickle; {CONVERT}"
    if others := sorted(name for name in top if name.endswith(".safetensors")):
        return f"has {others[0]}, but neither {SINGLE} nor {INDEX}. Rename it to {SINGLE} if it has all weights"
    inner = sorted(name for name in names if name.endswith((f"/{SINGLE}", f"/{INDEX}")))
    if inner:
        return f"has its weights in a folder of it: MODEL must be that folder ({PurePosixPath(inner[0]).parent})"
    return f"has neither {SINGLE} nor {INDEX} nor a GGUF file; {UNKNOWN}"


def local_source(path: Path) -> Path:
    """Return what an export opens for a folder or file on this machine: a folder with safetensors, or a GGUF file.

    Reads names, a few bytes and config.json.

    Raises:
        UserError: it is something else; the message has the remedy.
    """
    if path.is_dir():
        return _local_folder(path)
    if error := pointers([path]):
        raise error
    with path.open("rb") as file:
        head = file.read(9)
    kind = next((kind for magic, kind in MAGICS.items() if head.startswith(magic)), None)
    if kind == "gguf" or path.suffix.lower() == ".gguf":  # a damaged one is reported by its reader
        return path
    if path.suffix == ".safetensors" or path.name in ("config.json", INDEX):
        raise UserError(f"{path} is a file of a checkpoint. Give the folder: MODEL={path.parent}")
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        raise UserError(f"{path} is a safetensors file. Give a folder with it as {SINGLE}, and with config.json")
    what = kind or FORMATS.get(path.suffix.lower()) or ("a pickle" if path.suffix in PICKLES else None)
    if what is not None:
        raise UserError(f"{path} is {what}, and {UNKNOWN}. Give a Hugging Face folder or a .gguf file of the model")
    raise UserError(f"{path} is neither a Hugging Face folder nor a .gguf file (it begins with {head[:4]!r})")


def _local_folder(folder: Path) -> Path:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and len(path.relative_to(folder).parts) < 3]
    names = [path.relative_to(folder).as_posix() for path in files]
    if error := pointers([path for path in files if path.parent in (folder, folder / "additional_chat_templates")]):
        raise error
    if not (folder / "config.json").is_file() or not ({SINGLE, INDEX} & set(names)):
        chosen = weights_of(names, str(folder), f"{folder}/{{}}") if names else None
        if chosen is not None:
            return folder / chosen
    check_quantization(folder / "config.json")
    return folder


def check_quantization(path: Path) -> None:
    """Raise UserError if a config.json names the format of another runtime: MLX or ExLlama."""
    try:
        config = parse_object(path.read_bytes())
    except (OSError, ValueError):
        return  # the reader of the config reports it
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    what = None
    if isinstance(config.get("quantization"), dict) and "group_size" in config["quantization"]:
        what = "MLX"
    elif isinstance(method, str) and method.lower().startswith("exl"):
        what = "ExLlama"
    if what is not None:
        raise UserError(
            f"{path.parent} has weights in the format of {what}, by its config.json: "
            f"{json.dumps(quantized or config['quantization'])[:80]}. Export the checkpoint that it was made of, or a "
            "GGUF file of it"
        )
