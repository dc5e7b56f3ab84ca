"""The mutants that no test can notice: rules for whole kinds, and a list of single ones with the reason.

The rules, which mutations.py applies:
- Type annotations, and the test of `if TYPE_CHECKING`: nothing evaluates them.
- The text of error messages: f-strings in `raise` and in the calls of MESSAGE_FUNCTIONS. The condition that leads to
  the message is mutated; so is everything that chooses between messages.
- `strict` of zip and `frozen` of dataclasses: they guard against mistakes of this project's own code.
- `<`, `<=`, `>` and `>=` in the place of `==` and `!=` with a text or a named constant: nothing orders these.
- -1 as a size of `reshape`: numpy takes every negative number for it.
- The first element of a list in ONLY_ELEMENT as the last: MindIR has exactly one there.
- `functools.cache`: the result is the same, only later.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MESSAGE_FUNCTIONS = ("_require", "_require_tensor", "UserError", "WrongFileError", "ValueError", "_wrong")
# Repeated fields of MindIR that hold one element: in exporter/mindir only.
ONLY_ELEMENT = re.compile(r"\b(attribute|output|tensor|tensors|floats|ints|strings)\[0\]")


class Equivalent(NamedTuple):
    """A mutant that behaves like the original.

    Attributes:
        path: the module.
        line: a line that the mutant changes, without its indentation.
        changed: a regular expression that is found in the line of the mutant; empty for every change of the line.
        reason: why no test can notice it.
    """

    path: str
    line: str
    changed: str
    reason: str


CHUNKS = "runtime/engine/chunks.py"
PREFIX = "runtime/engine/prefix_cache.py"
STEP = "runtime/engine/step_inputs.py"
ENGINE = "runtime/engine/engine.py"
KV_CACHE = "runtime/engine/kv_cache.py"
COPY = "runtime/artifact/private_copy.py"
FILES = "runtime/artifact/files.py"
CHECKS = "runtime/artifact/manifest_checks.py"
SCHEDULER = "runtime/serve/scheduler.py"
DECODE = "runtime/generation/decode.py"
BATCH = "runtime/generation/batch.py"
SPECULATIVE = "runtime/generation/speculative.py"
FORMAT = "kernels/weight_format.py"
WEIGHTS = "exporter/opsets/cpu_weights.py"
SPEED = "both branches give the same values; one is faster"
TUNED = "a measured cost: any value gives a valid split, only at another speed"

TUNED_SIZE = "a measured size: the copy does not depend on it"

EQUIVALENT: tuple[Equivalent, ...] = (
    Equivalent(CHUNKS, "PASS_COST = 32", "", TUNED),
    Equivalent(CHUNKS, "CPU_PADDING = 0.125", "", TUNED),
    Equivalent(CHUNKS, "first, cost = [0], [0.0]", r"\[ -1\], \[0", "the bucket of 0 tokens is never looked up"),
    Equivalent(CHUNKS, "first, cost = [0], [0.0]", r"\[ 1\], \[0", "the bucket of 0 tokens is never looked up"),
    Equivalent(CHUNKS, "for tokens in range(1, buckets[-1] + 1):", r"\+ 2\)", "one entry more, which nothing looks up"),
    Equivalent(CHUNKS, "while tokens > 0:", "!= 0", "a chunk never holds more than the tokens that are left"),
    Equivalent(PREFIX, "if count == 1:  # every decode step: cheaper without slices", "< 1", SPEED),
    Equivalent(PREFIX, "if count == 1:  # every decode step: cheaper without slices", "== 0", SPEED),
    Equivalent(PREFIX, "self._calls += 1", r"\+= 2", "only the order of the numbers counts"),
    Equivalent(
        PREFIX,
        "continues = np.where(shared >= CONTINUED * self.length, shared, 0)",
        r"shared, ?-1\)",
        "0 and less both mean that the prompt continues no row",
    ),
    Equivalent(
        STEP,
        'self._derives = not self.arrays.keys() <= {"tokens", "tokens_by_step", "start", "length"}',
        r"\(\) < {",
        SPEED,
    ),
    Equivalent(
        STEP,
        'self._derives = not self.arrays.keys() <= {"tokens", "tokens_by_step", "start", "length"}',
        r"\(\) == {",
        SPEED,
    ),
    Equivalent(
        STEP,
        "if self.bucket == 1:  # every decode step: cheaper than numpy, whose code is no longer in the processor's "
        "caches",
        "bucket < 1",
        SPEED,
    ),
    Equivalent(
        STEP, "self._tokens[row, 0] = tokens.item(row, 0) if count else 0", r"\[row, ?-1\]", "there is one column"
    ),
    Equivalent(
        ENGINE,
        'step = StepInputs(graph, bucket, self.context, self.manifest.config.get("sliding_window") or 0)',
        r"or 1\)",
        "a model without a window has no input that depends on it",
    ),
    Equivalent(
        ENGINE,
        'step = StepInputs(graph, bucket, self.context, self.manifest.config.get("sliding_window") or 0)',
        r"or ?-1\)",
        "a model without a window has no input that depends on it",
    ),
    Equivalent(
        ENGINE,
        "if len(chunks) == 1:  # every decode step: kept short, as its code comes from memory after all the weights",
        "< 1",
        SPEED,
    ),
    Equivalent(
        ENGINE,
        "self.vocab_size = _vocab_size(manifest.graphs[0])",
        r"\[ -1\]",
        "manifest_checks requires the same logits of all graphs",
    ),
    Equivalent(
        ENGINE,
        'self._current[graph.file] = 0 if manifest.opset == "ascend" else graph.bucket',
        r"= ?-1 if",
        "no bucket has -1 or 0 tokens",
    ),
    Equivalent(KV_CACHE, "worth_copying = 1", "= 0", "a copy of no tokens changes nothing"),
    Equivalent(
        KV_CACHE, "def __init__(self, expected: int = 0) -> None:", r"= ?-?1\)", "every array is larger than a byte"
    ),
    Equivalent(COPY, "BLOCK = 2 << 20  # bytes that a thread reads at once", "", TUNED_SIZE),
    Equivalent(
        COPY,
        "memory = mmap.mmap(-1, reserved, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)",
        r"mmap\(- ?\d|mmap\( ?\d",
        "MAP_ANONYMOUS ignores the descriptor",
    ),
    Equivalent(
        COPY, "while at < end and not self._stopped:", "!= end", "a read never returns more than it was asked for"
    ),
    Equivalent(DECODE, "self._ran = False", "True", "before the first pass there is nothing to take back"),
    Equivalent(
        DECODE,
        "together = np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))",
        r"rows\[ -1\]|- len",
        "rows in order are copied instead of sliced",
    ),
    Equivalent(
        SPECULATIVE,
        "right = position < len(guessed) and picked[0] == guessed.item(position) and sequences.live[0]",
        r"live\[ -1\]|picked\[ -1\]",
        "there is one sequence",
    ),
    Equivalent(
        BATCH,
        "for prompt, adapter, row in zip(prompts, adapters or [0] * len(prompts), rows.tolist(), strict=True):",
        r"\[ -?1\]",
        "adapters are compared with each other only",
    ),
    Equivalent(
        SCHEDULER,
        "may_share = sequence.reuse_prefix and sequence.row < 0 and len(sequence.prompt) > self.chunk",
        "row != 0",
        "a sequence that waited has no row; one with a row has no earlier one with an equal first chunk",
    ),
    Equivalent(
        "runtime/generation/token_selector.py",
        "keep = 1 if config.num_beams == 1 else max(2, 1 + len(config.eos_token_id))  # some beam must be able to go "
        "on",
        "num_beams <= 1|keep = 0",
        "num_beams is at least 1; the sampler always keeps one token",
    ),
    Equivalent(
        FILES,
        "if os.path.commonpath([root, real]) != root:",
        "< root",
        "the common path is the root or a beginning of it, which is smaller",
    ),
    Equivalent(FILES, "BLOCK = 1 << 20  # bytes", "", "the hash does not depend on the size of the blocks"),
    Equivalent(
        FILES,
        "SMALL = 1 << 20  # bytes; smaller files are hashed at each load, which takes a millisecond",
        "",
        "a measured limit: it only decides which files are hashed again",
    ),
    Equivalent(
        FILES,
        "known = hash_cache.remembered() if any(entry.bytes > SMALL for entry in entries) else ()",
        "!= SMALL",
        "the entries of the cache are read, and not used",
    ),
    Equivalent(
        FILES,
        'return f"Checking the files of {folder.name} ({hashed / max(total, 1):.0%} of {total / 1e6:,.0f} MB)"',
        r"100000\d",
        "the text is rounded to megabytes",
    ),
    Equivalent(
        CHECKS,
        'SIZES = {"num_hidden_layers": -1, "num_key_value_heads": 1, "head_dim": 3}  # key -> axis of the cache; -1: '
        "the layers",
        "- 2,",
        "every negative number means the layers",
    ),
    Equivalent(
        CHECKS,
        '_require(not twice, f"{graph.file}: tensor", twice[:1], "each name once")',
        r"\[: 2\]",
        "how many names the message lists",
    ),
    Equivalent(
        CHECKS,
        '_require(not twice, "file", twice[:1], "each file once")',
        r"\[: 2\]",
        "how many names the message lists",
    ),
    Equivalent(
        "runtime/artifact/json_reader.py",
        'if text.count("[") + text.count("{") <= DEEPEST:',
        "== DEEPEST|< DEEPEST|<= -",
        SPEED,
    ),
    Equivalent(
        "runtime/artifact/json_reader.py", "if len(found) != len(pairs):", "<", "a dict has at most as many keys"
    ),
    Equivalent(
        "runtime/artifact/hash_cache.py",
        "MOST = 1000  # entries; each has about 130 bytes",
        "",
        "a chosen limit: it only decides which files are hashed again",
    ),
    Equivalent(
        "runtime/artifact/hash_cache.py", "LARGEST = 1 << 20  # bytes of the file", "", "a chosen limit, as MOST"
    ),
    Equivalent(
        "runtime/artifact/hash_cache.py",
        'json.dump({"format": FORMAT, "verified": merged}, file, indent=0)',
        "indent=",
        "the layout of a file that only the same code reads",
    ),
    Equivalent(WEIGHTS, "return rows[0] if len(rows) == 1 else np.concatenate(rows)", "== 0|< 1", SPEED),
    Equivalent(BATCH, "if len(rows) != 1:", "> 1", "a batch has at least one row"),
    Equivalent(
        "runtime/generation/token_selector.py",
        "self._processed = np.zeros((0, 0), np.float32)",
        r"\(\(0, ?-?1\)",
        "no call has this shape, so the first one replaces it",
    ),
    Equivalent(BATCH, "config = batches[0].selector.config", r"\[ -1\]", "all batches of a call have its config"),
    Equivalent(
        FORMAT,
        "q = np.divide(groups, wide, out=np.zeros_like(groups), where=wide > 0)",
        "!= 0",
        "scales are never negative",
    ),
    Equivalent(
        WEIGHTS,
        "return pack(w, fmt, threads=1).reshape(-1, panel_bytes(fmt, w.shape[1]))",
        r"threads= ?-?\d",
        "the number of threads changes no byte",
    ),
    Equivalent(
        WEIGHTS,
        "return pack_quantized(fmt, scales, q, threads=1).reshape(-1, panel_bytes(fmt, q.shape[1]))",
        r"threads= ?-?\d",
        "the number of threads changes no byte",
    ),
    Equivalent(
        WEIGHTS,
        "first, count = first // 2, min(count // 2, self.sizes[0] - first // 2)",
        r"self\.sizes\[ ?-?1\]",
        "gate and up have the same size",
    ),
    Equivalent(
        WEIGHTS,
        "return 2 * PANEL * panel_count(self.sizes[0]) if self.alternating else sum(self.sizes)",
        r"self\.sizes\[ ?-?1\]",
        "gate and up have the same size",
    ),
)


def known_reason(path: str, old: list[str], new: list[str]) -> str | None:
    """Return why a change of these lines into those is equivalent, by the list and the rule of ONLY_ELEMENT."""
    for known in EQUIVALENT:
        if known.path == path and known.line in old and any(re.search(known.changed, line) for line in new):
            return known.reason
    if path.startswith("exporter/mindir/") and len(old) == len(new) == 1:
        for found in ONLY_ELEMENT.finditer(old[0]):
            if old[0][: found.start()] + f"{found[1]}[ -1]" + old[0][found.end() :] == new[0]:
                return "MindIR has one element there"
    return None
