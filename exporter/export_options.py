"""The options of an export. Each option is declared once: as a field of `ExportOptions`.

These follow from the declarations:
- the command lines of `export` and `plan`
- the checks of the values
- the variables that the Makefile forwards, and README's table of options (a test compares them)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgellama.artifact.json_reader import parse_object
from edgellama.errors import UserError
from edgellama.kernels.weight_format import W4_GROUPS
from edgellama.lora.config import folder_and_scale, shown

from .checkpoint.base import read_json
from .checkpoint.folded import folded
from .checkpoint.open import open_checkpoint
from .checkpoint.quantized.scheme import read_scheme
from .checkpoint.source import local_files, model_name
from .graph_spec import Shape
from .network.config import LlamaConfig
from .opsets.ascend_model_checks import check_model
from .opsets.cpu_grids import own_format
from .opsets.specs import CPU, OPSETS, OpSetSpec
from .targets import TARGETS

BUCKETS = (32, 128, 512)
CONTEXT = 2048
ARTIFACTS = Path("artifacts")
CALIBRATED = ("int4", *W4_GROUPS)  # the formats that CALIBRATION rounds to


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parse a list such as "32,128,512". Raises ArgumentTypeError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 32,128,512") from error


def adapters(text: str) -> tuple[tuple[str, float], ...]:
    """Parse a list such as "style,facts:0.5" into (folder, scale) of each adapter.

    Raises ArgumentTypeError for an empty name or a scale that is 0, NaN or infinite.
    """
    return tuple(map(_adapter, text.split(",")))


def _adapter(text: str) -> tuple[str, float]:
    try:
        return folder_and_scale(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def rope_parameters(text: str) -> dict[str, Any]:
    """Parse a JSON object such as {"rope_type": "yarn", "factor": 4.0}. Raises ArgumentTypeError for anything else."""
    try:
        return parse_object(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f'{shown(text)} is {error}. Give a JSON object such as {{"rope_type": "yarn", "factor": 4.0}}'
        ) from error


def _check_target(target: str) -> None:
    if target not in TARGETS:
        raise UserError(f"TARGET {target!r} is unknown; choose from {', '.join(TARGETS)}")


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise UserError(f"BATCH is {batch}; an artifact has at least 1 row")


def _check_tokenizer(tokenizer: str) -> None:
    if tokenizer not in ("checkpoint", "none"):
        raise UserError(f"TOKENIZER is {tokenizer!r}; choose from checkpoint, none")


@dataclass(frozen=True)
class Declaration:
    """What an option is, beside the name, type and default of its field.

    Attributes:
        help: one phrase, for the command line and README
        shown: the default as documentation shows it; None: the default of the field
        parse: converts the text of the command line
        check: raises UserError for a value that no model and no target allows
        planned: whether `plan` takes the option too
        repeated: whether the option may be given several times; `parse` returns a tuple, and the tuples are joined
    """

    help: str
    shown: str | None = None
    parse: Callable[[str], Any] = str
    check: Callable[[Any], None] | None = None
    planned: bool = True
    repeated: bool = False


def _declared(help: str, **details: Any) -> dict[str, Declaration]:
    """Return the metadata of a field."""
    return {"option": Declaration(help, **details)}


def _targets() -> str:
    boards = ", ".join(name for name, target in TARGETS.items() if target.chip is not None)
    return (
        "cpu: fused kernels inside MindSpore Lite; portable: built-in operators only, float32; "
        f"{boards}: Ascend C kernels, float16"
    )


def _choices(of: Callable[[OpSetSpec], Sequence[str]]) -> str:
    return "; ".join(f"{opset.name}: {', '.join(of(opset))}" for opset in OPSETS)


@dataclass(frozen=True)
class ExportOptions:
    """The options of `make export` and `edgellama export`.

    None means that the default depends on the target or the model. Raises UserError for a value that is never valid;
    `shape_of` checks the values that depend on the model.
    """

    model: str = field(metadata=_declared("a preset, a Hugging Face folder, a hub id or a .gguf file"))
    target: str = field(default=next(iter(TARGETS)), metadata=_declared(_targets(), check=_check_target))
    weights: str | None = field(
        default=None,
        metadata=_declared(
            f"weight format ({_choices(lambda x: x.weights)}); int8 and int4 of cpu take 8.5 and 5.3 bits per weight, "
            "q4_0 needs a GGUF file of that type, w4g32 to w4g128 keep the integers of a 4-bit AWQ, GPTQ or "
            "compressed-tensors checkpoint; on ascend int8 and int4 take 8.5 and 4.75 bits per weight of the layers",
            shown="first of the target; on cpu a 4-bit folder's own, w4g32 to w4g128",
        ),
    )
    cache: str | None = field(
        default=None,
        metadata=_declared(
            f"dtype of the KV cache ({_choices(lambda x: x.caches)})",
            shown="first of the target; float32 with fp32 weights",
        ),
    )
    context: int | None = field(
        default=None,
        metadata=_declared(
            "tokens that the cache of a row holds", shown=f"{CONTEXT}, or the model's maximum", parse=int
        ),
    )
    buckets: tuple[int, ...] | None = field(
        default=None,
        metadata=_declared(
            "prefill lengths; decode (1 token) is always added",
            shown=",".join(map(str, BUCKETS)),
            parse=whole_numbers,
        ),
    )
    batch: int = field(default=1, metadata=_declared("rows that are generated together", parse=int, check=_check_batch))
    rope_scaling: Mapping[str, Any] | None = field(
        default=None,
        metadata=_declared(
            'another scaling of the rotary embedding, as the model card gives it: {"rope_type": "yarn", "factor": 4.0}',
            shown="the model's own",
            parse=rope_parameters,
        ),
    )
    tokenizer: str = field(
        default="checkpoint",
        metadata=_declared(
            "none: export without the checkpoint's tokenizer; the artifact takes and gives token ids",
            check=_check_tokenizer,
            planned=False,
        ),
    )
    lora: tuple[tuple[str, float], ...] = field(
        default=(),
        metadata=_declared(
            "folders of LoRA adapters (PEFT) to merge into the weights, separated by commas; FOLDER:SCALE multiplies "
            "an adapter by a number",
            shown="none",
            parse=adapters,
            planned=False,
            repeated=True,
        ),
    )
    calibration: str | None = field(
        default=None,
        metadata=_declared(
            "a text file, or default: round to 4 bits so that the outputs of the layers change least on this text "
            f"(cpu: {', '.join(CALIBRATED)})",
            shown="none",
            planned=False,
        ),
    )
    out: Path | None = field(
        default=None,
        metadata=_declared(
            "folder of the artifact", shown=f"{ARTIFACTS}/<model>-<target>-<weights>", parse=Path, planned=False
        ),
    )
    verify: bool = field(
        default=True,
        metadata=_declared("compare the artifact with an independent reference at the end", planned=False),
    )
    synthetic: bool = field(
        default=False,
        metadata=_declared(
            "random weights, to measure size, memory and speed without a download; MODEL gives the config only",
            planned=False,
        ),
    )
    seed: int | None = field(
        default=None, metadata=_declared("seed of the random weights", shown="0", parse=int, planned=False)
    )

    def __post_init__(self) -> None:
        for option in fields(self):
            if (check := declaration(option).check) is not None:
                check(getattr(self, option.name))
        if self.seed is not None and not self.synthetic:
            raise UserError(f"SEED is {self.seed}, which is for random weights. Give SYNTHETIC=1 too, or no SEED")
        if self.lora and self.synthetic:
            raise UserError("LORA adapts the weights of a checkpoint, and SYNTHETIC=1 has none. Leave one of them out")
        if self.lora and self.weights == "q4_0":
            raise UserError("WEIGHTS=q4_0 keeps the blocks of a GGUF file, and LORA changes them. Use WEIGHTS=int4")
        if self.calibration is not None:
            _check_calibration(self)
        elif self.lora and self.weights in W4_GROUPS:
            raise UserError(
                f"WEIGHTS={self.weights} keeps the integers of a checkpoint, and LORA changes them. Use WEIGHTS=int4, "
                "or give CALIBRATION"
            )

    def weights_format(self) -> str:
        """Return `weights`, or the default.

        That is the first of the target, with CALIBRATION int4, and on cpu a local folder's own format of 4 bits.
        """
        opset = TARGETS[self.target].opset
        if self.calibration is not None:
            return self.weights or "int4"
        own = None if self.weights or opset is not CPU or self.synthetic or self.lora else _own_format(self.model)
        return self.weights or own or opset.weights[0]

    def folder(self) -> Path:
        """Return the folder of the artifact: `out`, or the default. Reads at most headers of a local model."""
        if self.out is not None:
            return self.out
        name = model_name(self.model) + ("-synthetic" if self.synthetic else "") + self.adapter_names
        calibrated = "" if self.calibration is None else "-calibrated"
        return ARTIFACTS / f"{name}-{self.target}-{self.weights_format()}{calibrated}"

    @property
    def adapter_names(self) -> str:
        """A part of a folder's name for the adapters, such as "-style-facts"; empty without adapters."""
        return "".join(f"-{model_name(folder)}" for folder, _ in self.lora)


def _check_calibration(options: ExportOptions) -> None:
    if options.target != CPU.name or options.weights_format() not in CALIBRATED:
        raise UserError(
            f"CALIBRATION rounds to 4 bits, TARGET={CPU.name} and WEIGHTS {', '.join(CALIBRATED)}; it is TARGET="
            f"{options.target} with WEIGHTS={options.weights_format()}. Leave CALIBRATION out, or change them"
        )
    if options.tokenizer == "none":
        raise UserError("CALIBRATION needs the tokenizer, and TOKENIZER=none leaves it out. Leave one of them out")


def _own_format(model: str) -> str | None:
    """Return the format that holds the integers of a local folder as they are; None for every other model."""
    for path in local_files(model):
        try:
            if (path / "config.json").is_file() and read_scheme(read_json(path / "config.json")) is not None:
                return own_format(folded(open_checkpoint(path)))
        except UserError:  # the export reports it
            return None
    return None


def declaration(option: Field[Any]) -> Declaration:
    """Return the declaration of a field of ExportOptions."""
    found: Declaration = option.metadata["option"]
    return found


def shown_default(option: Field[Any]) -> str:
    """Return the default of a field of ExportOptions as documentation shows it; "" for a required option."""
    shown = declaration(option).shown
    if shown is not None:
        return shown
    if isinstance(option.default, bool):
        return str(int(option.default))
    return "" if option.default is MISSING else str(option.default)


def add_options(parser: argparse.ArgumentParser, *, planned: bool = False) -> None:
    """Declare the options on a command line. planned: only those that `plan` takes."""
    for option in fields(ExportOptions):
        declared, flag = declaration(option), "--" + option.name.replace("_", "-")
        if planned and not declared.planned:
            continue
        if option.default is MISSING:
            parser.add_argument(option.name, help=declared.help)
        elif isinstance(option.default, bool):
            switch = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=switch, default=argparse.SUPPRESS, help=declared.help)
        else:
            described = f"{declared.help} (default: {shown_default(option)})"
            described += "; may be repeated" * declared.repeated
            action = "extend" if declared.repeated else "store"
            parser.add_argument(flag, action=action, type=declared.parse, default=argparse.SUPPRESS, help=described)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that the command line gave, by field name. ExportOptions has the defaults of the others."""
    names = {option.name for option in fields(ExportOptions)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def shape_of(options: ExportOptions, config: LlamaConfig) -> tuple[Shape, tuple[int, ...]]:
    """Return the shape of the graph at the largest bucket, and all buckets with 1 (decode) first.

    Raises UserError for options that do not fit the model.
    """
    opset, chip = TARGETS[options.target].opset, TARGETS[options.target].chip
    longest = config.longest_context
    context = min(CONTEXT, longest) if options.context is None else options.context
    if not 1 <= context <= longest:
        raise UserError(
            f"CONTEXT is {context:,}; this model's positions go to {longest:,} (max_position_embeddings, or factor x "
            "original_max_position_embeddings). Choose a smaller CONTEXT. If the model card recommends a rope scaling "
            "for longer texts, give it: ROPE_SCALING"
        )
    buckets = tuple(b for b in BUCKETS if b <= context) if options.buckets is None else options.buckets
    if bad := [b for b in buckets if not 1 <= b <= context]:
        raise UserError(f"BUCKETS holds {bad[0]}; a bucket has 1 to {context:,} tokens (CONTEXT)")
    buckets = tuple(sorted({1, *buckets}))
    weights = _choice("WEIGHTS", options.weights_format(), opset.weights, options.target)
    # float32 weights are for exactness: a float16 cache would change the logits by a thousandth.
    exact = "float32" if weights == "fp32" and "float32" in opset.caches else None
    cache = _choice("CACHE", options.cache or exact, opset.caches, options.target)
    shape = Shape(options.batch, buckets[-1], context, weights, cache, chip)
    if chip is not None:
        check_model(config, shape, buckets)
    return shape, buckets


def _choice(what: str, value: str | None, choices: Sequence[str], target: str) -> str:
    if value is not None and value not in choices:
        raise UserError(f"{what} {value!r} with TARGET {target}; choose from {', '.join(choices)}")
    return value or choices[0]
