"""The Ascend chips: what each can be asked for, and the configuration that MindSpore Lite's converter takes for it.

The lists are of what public documentation shows, in MindIR's names: MindSpore's operator adapters for what reaches
CANN's graph engine, and the product tables of CANN's operator documentation for what the chip has. Nothing here has met
a chip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from exporter import mindir
from exporter.graph_spec import Input, Shape
from exporter.network.config import LlamaConfig
from runtime.errors import UserError

# What elementwise arithmetic, matrix products, gathers and shapes need: on every chip.
COMMON = frozenset(
    ["Add", "Cast", "Custom", "Div", "Gather", "MakeTuple", "MatMul", "Mul", "ReduceMean", "Reshape", "Sigmoid"]
) | {"Sqrt", "Square", "Transpose", "TupleGetItem"}
FUSED = frozenset(["RmsNorm", "WeightQuantBatchMatmul"])


@dataclass(frozen=True)
class Chip:
    """name: of people; soc: CANN's name of its commonest version (ge.socVersion); operators: MindIR's names; narrowed:
    head sizes with which fewer than MAX_RATIO query heads a key/value head fit the chip's local memory, and how many do
    (what kernels/ascend/op_host/attention_tiling.h finds)."""

    name: str
    soc: str
    operators: frozenset[str]
    narrowed: Mapping[int, int] = field(default_factory=dict)

    def has(self, operator: str) -> bool:
        return operator in self.operators


# SwiGlu is in CANN for the 310P and the 910B, but MindSpore's public sources show no adapter that would reach it.
CHIPS = {
    "ascend310p": Chip("Ascend 310P", "Ascend310P3", COMMON | FUSED, {240: 31, 256: 26}),
    "ascend310b": Chip("Ascend 310B", "Ascend310B1", COMMON),
    "ascend910b": Chip("Ascend 910B", "Ascend910B3", COMMON | FUSED, {224: 31, 240: 28, 256: 26}),
}
CUSTOM = ("FusedAttention", "LmHead")  # of kernels/ascend, for each of the three
MAX_RATIO = 32  # query heads of one key/value head
MAX_GEARS = 100  # of ge.dynamicBatchSize


def check_model(config: LlamaConfig, shape: Shape, buckets: Sequence[int]) -> None:
    """Raise UserError for what the chip, its kernels or the converter cannot do."""
    chip = CHIPS[str(shape.chip)]
    heads, groups, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    if shape.weights == "int8" and not chip.has("WeightQuantBatchMatmul"):
        raise UserError(
            f"WEIGHTS int8 with TARGET {shape.chip}: CANN's WeightQuantBatchMatmulV2 does not list {chip.name}. "
            "Use WEIGHTS=fp16"
        )
    if dim % 16 or dim > 256:
        raise UserError(f"head size {dim}: the attention kernels of {chip.name} take multiples of 16 up to 256")
    if (ratio := heads // groups) > (most := chip.narrowed.get(dim, MAX_RATIO)):
        others = [target for target, other in CHIPS.items() if ratio <= other.narrowed.get(dim, MAX_RATIO)]
        remedy = f"Export with TARGET={' or '.join(others)}" if others else "No Ascend target takes more"
        raise UserError(
            f"{ratio} query heads a key/value head; at head size {dim} the attention kernels of {chip.name} take up to "
            f"{most}. {remedy}"
        )
    if len(buckets) > MAX_GEARS:
        raise UserError(f"BUCKETS has {len(buckets)} sizes; the converter takes up to {MAX_GEARS}. 3 or 4 are plenty")


def logits_in_float32(config: LlamaConfig) -> bool:
    """Whether LmHead gives the logits: it takes whole blocks of 16. Else the chip's own product gives them in float16,
    whose steps near 16 are 1/64: more than what often lies between the two best."""
    return config.vocab_size % 16 == 0 and config.hidden_size % 16 == 0


def check_operators(model: mindir.Model, chip: Chip) -> None:
    """Raise UserError, naming node and operator, for a lowered graph that asks the chip for what it lacks."""
    for node, primitive in mindir.operators(model):
        if primitive is None:
            continue
        operator = primitive.op_type
        if not chip.has(operator):
            raise UserError(
                f"node {node.name}: operator {operator} is not known to exist on {chip.name}; "
                f"known are {', '.join(sorted(chip.operators))}"
            )
        if operator == "Custom":
            kind = next((a.s.decode() for a in primitive.attribute if a.name == "reg_op_name"), "?")
            if kind not in CUSTOM:
                raise UserError(f"node {node.name}: kernels/ascend has no operator {kind}; it has {', '.join(CUSTOM)}")


def conversion_config(chip: Chip, inputs: Sequence[Input], buckets: Sequence[int]) -> str:
    """The converter's configuration file for a graph with these inputs, in order; -1 is the token axis.

    One gear a bucket: the converter compiles each, and Model.resize switches between them. The token axis passes for
    the batch: ge.dynamicDims would name it as it is, but MindSpore Lite takes that only where the ranks of all inputs
    add up to at most 128 (converter.cc, dyn_shape_process.cc), and 16 layers' caches are more. Float32 stays where the
    graph says it (enforce_origin); left alone, the converter would make all of it float16.
    """
    several = len(buckets) > 1  # CANN takes 2 gears or more; one is a static shape
    shapes = ";".join(
        f"{x.name}:{','.join(str(n if several or n > 0 else buckets[0]) for n in x.shape)}" for x in inputs
    )
    gears = ",".join(map(str, buckets))
    return (
        f"# For {chip.name}. Another version of the chip has another ge.socVersion: npu-smi info names it.\n"
        "[ascend_context]\n"
        "precision_mode=enforce_origin\n"
        "\n"
        "[acl_init_options]\n"
        f"ge.socVersion={chip.soc}\n"
        "\n"
        "[acl_build_options]\n"
        'input_format="ND"\n'
        f'input_shape="{shapes}"\n'
    ) + (f'ge.dynamicBatchSize="{gears}"\n' if several else "")
