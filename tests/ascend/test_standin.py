"""The Ascend stand-in finds what it says it finds: each check has a kernel that is wrong on purpose."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgellama.kernels.ascend import standin
from edgellama.kernels.ascend.chips import CHIPS

WRONG = Path(__file__).parent / "wrong_kernels"
SOURCES = tuple(WRONG / name for name in ("wrong_memory.cpp", "wrong_order.cpp", "wrong_chip.cpp"))
STANDIN = Path(standin.HERE) / "standin"
P310, B310, B910 = "ascend310p", "ascend310b", "ascend910b"
EVERY = frozenset(CHIPS)

# kernel: what is found on which chips. On the other chips the kernel is right and must run.
FOUND: dict[str, tuple[str, frozenset[str]]] = {
    "local_write_past_the_end": ("bounds", EVERY),
    "local_read_past_the_end": ("bounds", EVERY),
    "gather_past_the_end": ("bounds", EVERY),
    "local_index_past_the_end": ("bounds", EVERY),
    "buffer_past_its_end": ("bounds", EVERY),
    "global_index_past_the_end": ("bounds", EVERY),
    "global_address_of_nothing": ("bounds", EVERY),
    "global_without_setglobalbuffer": ("bounds", EVERY),
    "syncall_with_half_its_workspace": ("bounds", frozenset({P310, B910})),
    "global_read_past_the_end": ("bounds", EVERY),
    "global_write_past_the_end": ("bounds", EVERY),
    "global_tensor_too_long": ("bounds", EVERY),
    "local_misaligned": ("alignment", EVERY),
    "copy_of_half_a_block": ("alignment", EVERY),
    "global_misaligned": ("alignment", EVERY),
    "gather_between_elements": ("alignment", EVERY),
    "unified_buffer_over_192_kb": ("capacity", frozenset({B910})),
    "unified_buffer_over_256_kb": ("capacity", EVERY),
    "nine_queue_buffers": ("capacity", EVERY),
    "buffers_65": ("capacity", EVERY),
    "blocks_4096": ("range", EVERY),
    "reduce_of_256_repeats": ("range", EVERY),
    "add_nothing": ("range", EVERY),
    "adds_nothing": ("range", EVERY),
    "duplicate_nothing": ("range", EVERY),
    "cast_nothing": ("range", EVERY),
    "repeat_of_256": ("range", EVERY),
    "mask_of_65_floats": ("range", EVERY),
    "stride_of_256_blocks": ("range", EVERY),
    "event_id_8": ("range", EVERY),
    "result_half_over_operand": ("overlap", EVERY),
    "gather_in_place": ("overlap", EVERY),
    "local_never_written": ("uninitialised", EVERY),
    "workspace_never_written": ("uninitialised", EVERY),
    "writes_its_input": ("readonly", EVERY),
    "deque_without_enque": ("queue", EVERY),
    "enque_twice": ("queue", EVERY),
    "enque_past_the_depth": ("queue", EVERY),
    "use_of_no_tensor": ("queue", EVERY),
    "use_while_queued": ("queue", EVERY),
    "free_before_deque": ("queue", EVERY),
    "free_twice": ("queue", EVERY),
    "use_after_free": ("queue", EVERY),
    "free_missing": ("queue", EVERY),
    "free_missing_at_the_end": ("queue", EVERY),
    "free_to_another_queue": ("queue", EVERY),
    "enque_missing": ("race", EVERY),
    "vector_after_copy_in": ("race", EVERY),
    "vector_after_vector": ("race", EVERY),
    "vector_over_vector_read": ("race", EVERY),
    "copy_out_after_vector": ("race", EVERY),
    "vector_over_copy_out": ("race", EVERY),
    "copy_in_over_vector_read": ("race", EVERY),
    "vector_after_scalar": ("race", EVERY),
    "scalar_after_vector": ("race", EVERY),
    "copy_in_after_copy_out_of_global": ("race", EVERY),
    "copy_out_over_copy_in_of_global": ("race", EVERY),
    "copies_in_overlap": ("race", EVERY),
    "flag_of_another_pair": ("race", EVERY),
    "flag_set_too_early": ("race", EVERY),
    "two_cores_write_the_same": ("race", EVERY),
    "two_cores_read_and_write_the_same": ("race", EVERY),
    "flag_never_set": ("sync", EVERY),
    "flag_set_twice": ("sync", EVERY),
    "flag_never_waited_for": ("sync", EVERY),
    "datacopypad": ("unsupported", frozenset({P310})),
    "datacopypad_out": ("unsupported", frozenset({P310})),
    "brcb": ("unsupported", frozenset({B310})),
    "cast_rint": ("unsupported", frozenset({P310})),
    "cast_to_float_with_rounding": ("unsupported", EVERY),
    "cast_to_odd": ("unsupported", EVERY),
    "cast_integers_with_rounding": ("unsupported", EVERY),
    "half_into_float": ("unsupported", frozenset({B310})),
    "copy_bfloat16": ("unsupported", frozenset({P310})),
    "add_bfloat16": ("unsupported", EVERY),
    "reduce_only_value": ("unsupported", frozenset({P310})),
    "reduce_index_value": ("unsupported", frozenset({B310})),
    "reduce_only_index": ("unsupported", EVERY),
    "unknown_event": ("unsupported", EVERY),
    "free_flags": ("unsupported", frozenset({B310})),
    "syncall_in_hardware": ("unsupported", frozenset({P310, B310})),
    "syncall_through_memory": ("unsupported", frozenset({B310})),
    "kernel_type_mixed": ("unsupported", frozenset({P310, B310})),
    "kernel_type_unified": ("unsupported", frozenset({B310, B910})),
    "matmul_of_float": ("unsupported", frozenset({P310})),
    "matmul_of_bfloat16": ("unsupported", frozenset({P310})),
    "matmul_with_local_workspace": ("unsupported", frozenset({B310, B910})),
    "matmul_rearranged_by_the_vector_unit": ("unsupported", frozenset({B310, B910})),
    "matmul_without_local_workspace": ("matmul", frozenset({P310})),
    "matmul_that_adds_to_its_result": ("unsupported", EVERY),
    "matmul_with_a_small_local_workspace": ("capacity", frozenset({P310})),
    "matmul_of_half_a_fractal": ("matmul", EVERY),
    "matmul_with_a_transposed": ("matmul", EVERY),
    "matmul_never_registered": ("matmul", EVERY),
    "five_matmul_objects": ("matmul", EVERY),
    "matmul_on_no_cores": ("matmul", EVERY),
    "matmul_depth_below_its_step": ("matmul", EVERY),
    "matmul_without_translength": ("matmul", frozenset({P310})),
    "matmul_before_its_operand_is_written": ("race", EVERY),
    "matmul_result_read_at_once": ("race", frozenset({P310, B310})),
    "matmul_without_end": ("matmul", EVERY),
    "matmul_registered_after_initbuffer": ("matmul", frozenset({B910})),
    "matmul_transposed_without_istrans": ("matmul", EVERY),
    "matmul_shape_over_its_tiling": ("matmul", EVERY),
    "matmul_base_of_8": ("matmul", EVERY),
    "matmul_over_l0a": ("capacity", EVERY),
    "matmul_over_l0b": ("capacity", EVERY),
    "matmul_l0c_of_256_kb": ("capacity", frozenset({B310, B910})),
    "matmul_l1_of_512_kb": ("capacity", frozenset({B910})),
}
RIGHT = ("right", "right_through_the_scalar_pipe", "right_matmul")
ON_TWO_CORES = {"two_cores_write_the_same", "two_cores_read_and_write_the_same"}
ELSEWHERE = ("right_with_syncall", "reads_what_another_core_writes", "one_core_skips_syncall")  # in tests of their own


@pytest.fixture(scope="session")
def wrong_kernels() -> dict[str, ctypes.CDLL]:
    """The wrong kernels compiled for each chip, at once."""
    with ThreadPoolExecutor(len(CHIPS)) as pool:
        return dict(zip(EVERY, pool.map(lambda chip: standin.load(chip, SOURCES, "-O0"), EVERY), strict=True))


def run(library: ctypes.CDLL, kernel: str, blocks: int = 1) -> np.ndarray:
    """Runs a kernel of tests/ascend/wrong_kernels on 256 floats; returns its output."""
    data, out = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    arguments = [
        standin.Argument("in", data),
        standin.Argument("out", out, writable=True),
        standin.Argument("workspace", np.zeros(256, np.float32), writable=True, fresh=True),
        standin.Argument("tiling", None),
    ]
    standin.launch(library, kernel, arguments, blocks=blocks)
    return out


@pytest.mark.parametrize("chip", sorted(EVERY))
@pytest.mark.parametrize("kernel", sorted(FOUND))
def test_wrong_kernel_is_caught_on_its_chips_alone(wrong_kernels, kernel: str, chip: str) -> None:
    kind, chips = FOUND[kernel]
    blocks = 2 if kernel in ON_TWO_CORES else 1
    if chip in chips:
        with pytest.raises(standin.StandInError) as caught:
            run(wrong_kernels[chip], kernel, blocks)
        assert caught.value.kind == kind, caught.value
    else:
        run(wrong_kernels[chip], kernel, blocks)


@pytest.mark.parametrize("chip", sorted(EVERY))
@pytest.mark.parametrize("kernel", RIGHT)
def test_right_kernel_runs(wrong_kernels, kernel: str, chip: str) -> None:
    expected = {
        "right": np.arange(256) + 1,
        "right_through_the_scalar_pipe": np.ones(256),
        "right_matmul": np.full(256, 16),
    }
    np.testing.assert_array_equal(run(wrong_kernels[chip], kernel), expected[kernel])


def test_cores_that_exchange_data_must_meet(wrong_kernels) -> None:
    run(wrong_kernels[B910], "right_with_syncall", blocks=2)
    for chip in EVERY:
        with pytest.raises(standin.StandInError) as caught:
            run(wrong_kernels[chip], "reads_what_another_core_writes", blocks=2)
        assert caught.value.kind in ("race", "uninitialised"), caught.value  # whichever core comes first
    with pytest.raises(standin.StandInError, match=r"\[sync\] SyncAll"):
        run(wrong_kernels[B910], "one_core_skips_syncall", blocks=2)


def test_every_wrong_kernel_is_in_the_table() -> None:
    written = {
        line.split("(")[1].split(")")[0]
        for source in SOURCES
        for line in source.read_text().splitlines()
        if line.startswith("KERNEL(")
    }
    assert written == {*FOUND, *RIGHT, *ELSEWHERE}


def checks() -> dict[str, set[str]]:
    """Every check of the stand-in, by its text: "file:line" of each line of the call that tells what is wrong."""
    found = {}
    for path in (*STANDIN.rglob("*.h"), STANDIN / "launch.cpp"):
        text = path.read_text()
        for call in re.finditer(r"(?<!void )\b(?:Fail|Full|Lacks|Race|RaceGlobal)\((?!\{)[^;]*;", text):
            first = text.count("\n", 0, call.start()) + 1
            lines = range(first, first + call[0].count("\n") + 1)
            found[f"{path.name}:{first}: {call[0]}"] = {f"{path.name}:{line}" for line in lines}
    return found


def test_every_check_has_a_wrong_kernel(wrong_kernels) -> None:
    reported = set()
    for library in wrong_kernels.values():
        for kernel in (*FOUND, *ELSEWHERE):
            try:
                run(library, kernel, 2 if kernel in (*ON_TWO_CORES, *ELSEWHERE) else 1)
            except standin.StandInError as error:
                reported.add(error.check)
    with pytest.raises(standin.StandInError, match=r"\[range\] a kernel with 1 arguments") as caught:
        standin.launch(wrong_kernels[P310], "right", [standin.Argument("in", np.zeros(8, np.float32))])
    reported.add(caught.value.check)
    found = checks()
    assert len(found) > 80 and reported <= set().union(*found.values())
    assert not [text for text, lines in found.items() if not lines & reported]
