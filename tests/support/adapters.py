"""Makes small random LoRA adapters with PEFT, and computes the logits that PEFT gives with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]  # of Phi-3


def load_base(folder: Path) -> Any:
    """Returns the transformers model of a checkpoint, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def make_adapter(base: Path, folder: Path, seed: int = 1, spread: float = 0.3, **settings: Any) -> Path:
    """Writes the folder of an adapter whose trained tensors are random.

    - base: the checkpoint that it is for.
    - spread: standard deviation of what is added to each trained tensor.
    - settings: of PEFT's LoraConfig; by default all linear layers have rank 4.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_base(base), LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": TARGETS, **settings})
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    model.save_pretrained(folder)
    return folder


def peft_logits(base: Path, adapters: Sequence[tuple[Path, float]], tokens: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns PEFT's logits [rows, n, V] of texts of equal length, with all adapters (folder, scale) active."""
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    names = [f"adapter{i}" for i in range(len(adapters))]
    model: Any = load_base(base)
    for name, (folder, _) in zip(names, adapters, strict=True):
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name)
    if names:
        model.base_model.set_adapter(names)
        for module in model.modules():
            for name, (_, scale) in zip(names, adapters, strict=True):
                if isinstance(module, LoraLayer) and name in module.scaling:
                    module.set_scale(name, scale)
    with torch.no_grad():
        return np.asarray(model.eval()(torch.tensor(np.asarray(tokens))).logits.numpy())
