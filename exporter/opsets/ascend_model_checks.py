"""Checks that a chip, its kernels and the converter support a model, and that a chip has the operators of a graph.

The facts of the chips are in kernels/ascend/chips.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellama.errors import UserError
from edgellama.kernels.ascend.chips import CHIPS, CUSTOM_OPERATORS, Chip
from edgellama.kernels.weight_format import PANEL

from ..checkpoint.base import LINEARS
from ..graph_spec import Shape
from ..mindir import lower as mindir
from ..network.config import LlamaConfig
from ..network.layer_sizes import linear_sizes, windows
from ..network.rope import query_scale
from .ascend_weights import QUANTIZED

MAX_GEARS = 100  # of ge.dynamicBatchSize


def check_model(config: LlamaConfig, shape: Shape, buckets: Sequence[int]) -> None:
    """Raise UserError if the chip, its kernels or the converter do not support the model."""
    chip = CHIPS[str(shape.chip)]
    heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    name = config.family.architecture
    if config.attn_logit_softcapping is not None:
        raise UserError(
            f"{name} bounds the scores of attention (attn_logit_softcapping), which the attention kernels of "
            f"{chip.name} do not do. Export with TARGET=cpu or TARGET=portable"
        )
    if config.family.qk_norm is not None and config.family.qk_norm.after_rope:
        raise UserError(
            f"{name} normalises queries and keys after the rotary embedding, which the attention kernels of "
            f"{chip.name} do not do. Export with TARGET=cpu or TARGET=portable"
        )
    scale = query_scale(config)
    if scale is not None and shape.context > scale[1]:
        raise UserError(
            f"{name} multiplies the queries from position {scale[1]} on by a factor (llama_4_scaling_beta), which the "
            f"attention kernels of {chip.name} do not do, and CONTEXT is {shape.context}. Export with "
            f"CONTEXT={scale[1]} or less, or with TARGET=cpu or TARGET=portable"
        )
    if (quantized := QUANTIZED.get(shape.weights)) is not None:
        _check_packed(config, shape.weights, quantized[1])
    if dim % 16 or dim > 256:
        raise UserError(f"head size {dim}: the attention kernels of {chip.name} take multiples of 16 up to 256")
    if (ratio := heads // groups) > (most := chip.max_query_heads(dim)):
        others = [target for target, other in CHIPS.items() if ratio <= other.max_query_heads(dim)]
        remedy = f"Export with TARGET={' or '.join(others)}" if others else "No Ascend target takes more"
        raise UserError(
            f"{ratio} query heads a key/value head; at head size {dim} the attention kernels of {chip.name} take up to "
            f"{most}. {remedy}"
        )
    if len(buckets) > MAX_GEARS:
        raise UserError(f"BUCKETS has {len(buckets)} sizes; the converter takes up to {MAX_GEARS}. 3 or 4 are plenty")


def _check_packed(config: LlamaConfig, weights: str, group: int) -> None:
    """Raise UserError if a matrix of a layer is not whole panels of 16 outputs and groups of inputs."""
    for name in LINEARS:
        outer, inner, _ = linear_sizes(config, name)
        if outer % PANEL or inner % group:
            raise UserError(
                f"WEIGHTS={weights}: {name} has {inner} inputs and {outer} outputs; QuantLinear takes multiples of "
                f"{group} and {PANEL}. Use WEIGHTS=fp16"
            )


def is_version_2(config: LlamaConfig, shape: Shape) -> bool:
    """Whether the graph has operators that artifacts of format version 1 do not have."""
    return is_split(config, shape) or shape.weights in QUANTIZED


def logits_in_float32(config: LlamaConfig) -> bool:
    """Whether LmHead gives the logits, which takes whole blocks of 16.

    If it does not, MindIR's MatMul gives them in float16. The steps of float16 near 16 are 1/64, which is often more
    than the difference between the two best logits.
    """
    return config.vocab_size % 16 == 0 and config.hidden_size % 16 == 0


def attention_parts(config: LlamaConfig, shape: Shape, layer: int) -> int:
    """Return the parts of a layer's attention: more than 1 if it takes SplitAttention and JoinAttention."""
    seen = windows(config, shape.context)[layer] or shape.context
    return CHIPS[str(shape.chip)].attention_parts(shape.rows * config.num_key_value_heads, seen)


def is_split(config: LlamaConfig, shape: Shape) -> bool:
    """Whether the attention of a layer is split, which artifacts of format version 1 do not have."""
    return any(attention_parts(config, shape, layer) > 1 for layer in range(config.num_hidden_layers))


def check_operators(model: mindir.Model, chip: Chip) -> None:
    """Raise UserError, naming node and operator, if a lowered graph uses an operator that the chip does not have."""
    for node, primitive in mindir.operators(model):
        if primitive is None:
            continue
        operator = primitive.op_type
        if not chip.has(operator):
            raise UserError(
                f"node {node.name}: operator {operator} is not known to exist on {chip.name}; "
                f"known are {', '.join(chip.operators)}"
            )
        if operator == "Custom":
            kind = next((a.s.decode() for a in primitive.attribute if a.name == "reg_op_name"), "?")
            if kind not in CUSTOM_OPERATORS:
                raise UserError(
                    f"node {node.name}: kernels/ascend has no operator {kind}; it has {', '.join(CUSTOM_OPERATORS)}"
                )
