"""Checkpoints with quantized weights, and LoRA adapters: damaged settings, tables and values."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from support.json_mutations import damaged, mutated
from torture.case import Case, FaultClass
from torture.fixtures import fixture
from torture.forked import in_child
from torture.outcomes import Outcome

SECONDS = 60.0
WEIGHTS, CONFIG, ADAPTER = "model.safetensors", "config.json", "adapter_model.safetensors"
EXPRESSIONS = (
    r"(([a-z_.\d]+)+)+!",
    r"(.*.*)*x\Z",
    "(" * 3000 + "a" + ")" * 3000,
    "(?i)q_proj",
    "a{99999999999}",
    "a**",
    "",
)


def layouts() -> dict[str, tuple[Callable[[Any], Any], dict[str, Any]]]:
    """Return the writer of each layout, and the quantization_config that describes it."""
    from support import quantized_files as files

    def group(layout: str, **weights: Any) -> dict[str, Any]:
        described = {"targets": ["re:.*_proj"], "weights": {"type": "int", "symmetric": False, **weights}}
        return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": described}}

    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq"}
    four = {"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "group"}
    awq = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    fp8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}
    return {
        "awq": (partial(files.awq, size=32), awq),
        "gptq": (partial(files.gptq, size=32, act_order=True), gptq),
        "pack": (
            partial(files.pack_quantized, size=32, symmetric=False, act_order=True),
            group("pack-quantized", **four),
        ),
        "int8": (
            partial(files.int_quantized, symmetric=False),
            group("int-quantized", num_bits=8, strategy="channel"),
        ),
        "fp8": (partial(files.float8, block=(16, 32), name="scale_inv"), fp8),
    }


def quantized(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """quantization_config, the table of tensors, or scales, zero points and group indices of a quantized checkpoint."""
    import numpy as np
    from safetensors.numpy import load_file

    import edgellama.exporter.checkpoint.safetensors
    from support.quantized_files import write_quantized

    assert edgellama.exporter.checkpoint.safetensors
    base = fixture(shared, "checkpoint")
    made = {name: write_quantized(base, shared / name, write, config) for name, (write, config) in layouts().items()}
    expected = {name: load_file(folder / "floats" / WEIGHTS) for name, folder in made.items()}
    for case in cases:
        name = list(made)[case.number % len(made)]
        folder = Path(shutil.copytree(made[name] / "quantized", case.folder / name))
        same_data = _damage_quantized(folder, case.rng)

        def read(folder: Path = folder, name: str = name, same_data: bool = same_data) -> Outcome:
            from edgellama.exporter.checkpoint.open import open_checkpoint

            opened = open_checkpoint(folder)
            found = {each: opened.tensor(each) for each in opened.names()}
            wrong = [each for each, values in found.items() if not np.isfinite(values).all()]
            if not wrong and same_data:
                wrong = [each for each, values in found.items() if not np.array_equal(values, expected[name][each])]
            return Outcome("silent", f"{wrong[0]} has wrong values") if wrong else Outcome("harmless")

        yield in_child(read, [folder.name, "config", "quantiz"], SECONDS)


def _damage_quantized(folder: Path, rng: random.Random) -> bool:
    """Damage a checkpoint. Returns whether the tensors, and what the config says of them, are as before."""
    from safetensors.torch import load_file, save_file

    from torture.weight_headers import broken

    config = json.loads((folder / CONFIG).read_text())
    kind = rng.randrange(4)
    if kind == 0:
        given = mutated(config["quantization_config"], rng)
        groups = config["quantization_config"].get("config_groups")
        if groups and rng.random() < 0.3:
            groups["group_0"]["targets"] = [f"re:{rng.choice(EXPRESSIONS)}", *rng.choice(([], ["Linear"]))]
            given = config["quantization_config"]
        (folder / CONFIG).write_text(json.dumps({**config, "quantization_config": given}))
        return True
    path = folder / WEIGHTS
    if kind == 1:
        path.write_bytes(broken(path.read_bytes(), rng))
        return False
    tensors = load_file(path)
    parts = (
        "scales",
        "qzeros",
        "g_idx",
        "qweight",
        "scale",
        "zero_point",
        "shape",
        "packed",
        "scale_inv",
        "weight_g_idx",
    )
    name = rng.choice([name for name in tensors if name.endswith(parts)])
    _damage_tensor(tensors, name, rng)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    return False


def _damage_tensor(tensors: dict[str, Any], name: str, rng: random.Random) -> None:
    import torch

    tensor = tensors[name]
    kind = rng.randrange(6)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = (
            tensor.reshape(-1) if rng.random() < 0.5 else tensor[..., : max(0, tensor.shape[-1] - 1)].clone()
        )
    elif kind == 2:
        other = rng.choice((torch.float32, torch.int8, torch.int64, torch.bool, torch.float64))
        tensors[name] = tensor.float().nan_to_num().to(other)
    elif kind == 3:
        tensors[name] = tensor.new_zeros(rng.choice(((), (0,), (0, 4), (1,), (3, 3, 3), (*tensor.shape, 1))))
    elif kind == 4:
        tensors[f"{name}{rng.choice(('', '2'))}"] = tensors.pop(rng.choice(list(tensors)))
    else:
        changed = tensor.clone()
        floats = (float("nan"), float("inf"), 0.0, -1.0)
        value = rng.choice(floats if changed.is_floating_point() else (-1, 0, 1, 127, -128))
        changed.view(-1)[rng.randrange(max(1, changed.numel()))] = value
        tensors[name] = changed


def adapters(cases: Iterator[Case], shared: Path) -> Iterator[Outcome]:
    """adapter_config.json, the table of tensors, or their values; regular expressions that take for ever."""
    import numpy as np
    from safetensors.numpy import load_file

    import edgellama.exporter.checkpoint.merged
    import edgellama.exporter.checkpoint.safetensors

    assert edgellama.exporter.checkpoint.merged and edgellama.exporter.checkpoint.safetensors
    base, good = fixture(shared, "checkpoint"), fixture(shared, "adapter")
    weights = load_file(base / WEIGHTS)
    for case in cases:
        folder = Path(shutil.copytree(good, case.folder / "adapter"))
        _damage_adapter(folder, case.rng)

        def read(folder: Path = folder) -> Outcome:
            from edgellama.exporter.checkpoint.merged import merged
            from edgellama.exporter.checkpoint.open import open_checkpoint

            checkpoint = merged(open_checkpoint(base), [(str(folder), 1.0)])
            found = {name: checkpoint.tensor(name) for name in checkpoint.names()}
            config = json.loads((folder / "adapter_config.json").read_text())
            stored = load_file(folder / ADAPTER)
            scaling = config.get("lora_alpha", 8) / (config.get("r", 8) ** (0.5 if config.get("use_rslora") else 1))
            for name, values in found.items():
                a, b = (f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight" for part in "AB")
                wanted = weights[name] + (scaling * stored[b] @ stored[a] if a in stored and b in stored else 0)
                if not np.allclose(values, wanted, rtol=1e-4, atol=1e-5):
                    return Outcome("silent", f"{name} is not W + s B A")
            return Outcome("harmless")

        yield in_child(read, ["adapter"], SECONDS)


def _damage_adapter(folder: Path, rng: random.Random) -> None:
    from torture.weight_headers import broken

    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    kind = rng.randrange(5)
    if kind == 0:
        path.write_text(json.dumps(mutated(config, rng)))
    elif kind == 1:
        path.write_bytes(damaged(json.dumps(config).encode(), rng))
    elif kind == 2:
        text = rng.choice(EXPRESSIONS)
        changes: tuple[dict[str, Any], ...] = (
            {"target_modules": text},
            {"exclude_modules": text},
            {"rank_pattern": {text: 4}},
            {"alpha_pattern": {text: config["lora_alpha"]}},
            {"layers_pattern": text, "layers_to_transform": [0, 1]},
            {"modules_to_save": [text]},
        )
        path.write_text(json.dumps({**config, **rng.choice(changes)}))
    elif kind == 3:
        (folder / ADAPTER).write_bytes(broken((folder / ADAPTER).read_bytes(), rng))
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / ADAPTER)
        _damage_tensor(tensors, rng.choice(list(tensors)), rng)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / ADAPTER, {"format": "pt"})


CLASSES = (
    FaultClass(
        "checkpoint-quantized",
        "AWQ, GPTQ, packed, int8 and FP8 checkpoints: quantization_config, the table, scales, zero points, indices",
        "the exporter accepts it, every value is finite, and, if only the config changed, each weight is the one that "
        "an independent writer stored",
        400,
        40,
        quantized,
    ),
    FaultClass(
        "adapters",
        "a LoRA adapter: its config, also with expressions that take for ever, its table of tensors, and their values",
        "the exporter accepts it, and each weight is W + s B A of the tensors and the scaling in the files",
        400,
        30,
        adapters,
    ),
)
