"""Which modules `make mutants` changes, and which quick tests must notice it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Module:
    """A module and the tests that cover it.

    Attributes:
        path: the module, from the root of the repository.
        tests: test files, from `tests/`. They run in this order until one fails, so the quickest come first.
    """

    path: str
    tests: tuple[str, ...]


# Tests that take seconds, and that no mutant needs: quicker tests of the same files notice the same changes.
LEFT_OUT = (
    "test_a_change_of_any_file_is_an_error_or_changes_nothing",
    "test_any_sequence_of_calls_equals_one_pass_per_row",
    "test_each_answer_equals_the_one_that_it_would_get_alone",
    "test_first_tokens_follow_the_models_distribution",
    "test_check_needs_neither_numpy_nor_mindspore_lite",
    "test_the_installed_mindspore_lite_is_refused_for_what_it_lacks",
    "test_processes_share_the_cache_file",
    "test_shown_text_ends_before_the_first_stop_string",
)

DECODE = (
    *("runtime/test_decode.py", "runtime/test_guessing.py", "runtime/test_step_batch.py"),
    "runtime/test_generation_settings.py",
)
ENGINE = ("runtime/test_engine_parts.py", "runtime/test_engine_calls.py", "runtime/test_engine.py")
FILES = ("runtime/test_file_hashes.py", "runtime/test_file_checks.py")
PARTS: dict[str, tuple[Module, ...]] = {
    "decode": (
        Module("runtime/generation/decode.py", DECODE),
        Module("runtime/generation/batch.py", (*DECODE, "runtime/test_prefix_reuse.py")),
        Module("runtime/generation/speculative.py", ("runtime/test_guessing.py", "runtime/test_assistant.py")),
        Module("runtime/generation/token_selector.py", (*DECODE, "runtime/test_beam_search.py")),
        Module("runtime/generation/stopping.py", DECODE),
    ),
    "engine": (
        Module("runtime/engine/engine.py", (*ENGINE, "ascend/test_runtime.py", "runtime/test_compatibility.py")),
        Module("runtime/engine/weights.py", ("runtime/test_engine_calls.py", "runtime/test_changed_files.py")),
        Module("runtime/engine/chunks.py", ENGINE),
        Module("runtime/engine/kv_cache.py", ENGINE),
        Module("runtime/engine/step_inputs.py", ENGINE),
    ),
    "prefix-cache": (
        Module("runtime/engine/prefix_cache.py", ("runtime/test_prefix_cache.py", "runtime/test_prefix_reuse.py")),
    ),
    "scheduler": (Module("runtime/serve/scheduler.py", ("serve/test_scheduler_steps.py", "serve/test_scheduler.py")),),
    "artifact": (
        Module("runtime/artifact/files.py", FILES),
        Module("runtime/artifact/manifest_checks.py", ("runtime/test_manifest_checks.py",)),
        Module("runtime/artifact/safetensors.py", ("runtime/test_weights_table.py", "runtime/test_artifact_faults.py")),
        Module("runtime/artifact/private_copy.py", ("runtime/test_changed_files.py", *FILES)),
        Module("runtime/artifact/json_reader.py", ("runtime/test_json_reader.py", "runtime/test_file_checks.py")),
        Module("runtime/artifact/hash_cache.py", FILES),
    ),
    "mindir": (
        Module("exporter/mindir/lower.py", ("exporter/test_lower.py",)),
        Module("exporter/mindir/graph.py", ("exporter/test_lower.py",)),
    ),
    "packing": (
        Module("kernels/weight_format.py", ("kernels/test_weight_format.py",)),
        Module("kernels/cpu/packing.py", ("kernels/test_weight_format.py",)),
        Module(
            "exporter/opsets/cpu_weights.py", ("exporter/test_cpu_weights.py", "exporter/test_rounded_checkpoint.py")
        ),
    ),
}
