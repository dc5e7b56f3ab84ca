"""The mindspore_lite package in the way the runtime uses it: tensors in numpy's memory, models, contexts, errors."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from importlib.metadata import version
from pathlib import Path

import mindspore_lite as mslite
import numpy as np
import pytest

from edgellama.lite.release import LABEL
from support.affine_model import affine_inputs, load, run_affine
from support.child import run_support

if not version("mindspore-lite").endswith(LABEL):
    pytest.skip("an official mindspore_lite is installed; these tests hold our binding", allow_module_level=True)

TYPES = {
    "bool": mslite.DataType.BOOL,
    "int8": mslite.DataType.INT8,
    "int16": mslite.DataType.INT16,
    "int32": mslite.DataType.INT32,
    "int64": mslite.DataType.INT64,
    "uint8": mslite.DataType.UINT8,
    "uint16": mslite.DataType.UINT16,
    "uint32": mslite.DataType.UINT32,
    "uint64": mslite.DataType.UINT64,
    "float16": mslite.DataType.FLOAT16,
    "float32": mslite.DataType.FLOAT32,
    "float64": mslite.DataType.FLOAT64,
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graphs of lite_models.py, which needs MindSpore and therefore runs in a child process."""
    folder = tmp_path_factory.mktemp("graphs")
    run_support("lite_models", str(folder))
    return folder


def tensor(dtype: str, shape: list[int]) -> mslite.Tensor:
    made = mslite.Tensor()
    made.dtype, made.shape, made.name = TYPES[dtype], shape, "t"
    return made


@pytest.mark.parametrize("dtype", TYPES)
def test_tensor_and_array_are_the_same_memory(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    made = tensor(dtype, [2, 3])
    made.set_data_from_numpy(array)
    view = made.get_data_to_numpy()
    assert view.dtype == array.dtype
    assert view.shape == (2, 3)
    assert np.shares_memory(view, array)
    array[1, 2] = 0
    view[0, 0] = 1
    np.testing.assert_array_equal(view, array)
    assert array[0, 0] == 1
    assert made.data_size == array.nbytes
    assert made.element_num == 6


def test_shape_may_differ_where_the_bytes_agree() -> None:
    made = tensor("float32", [3, 2])
    array = np.arange(6, dtype=np.float32)
    made.set_data_from_numpy(array)
    assert made.get_data_to_numpy().shape == (3, 2)
    assert np.shares_memory(made.get_data_to_numpy(), array)


def test_array_lives_as_long_as_the_tensor_or_a_view() -> None:
    made = tensor("float32", [1000])
    array = np.full(1000, 3.0, np.float32)
    alive = weakref.ref(array)
    made.set_data_from_numpy(array)
    del array
    gc.collect()
    view = made.get_data_to_numpy()
    assert alive() is not None
    made.set_data_from_numpy(np.zeros(1000, np.float32))  # the view keeps the first array
    gc.collect()
    assert alive() is not None
    assert (view == 3.0).all()
    del view
    gc.collect()
    assert alive() is None


def test_view_outlives_its_tensor() -> None:
    made = tensor("int32", [4])
    view = made.get_data_to_numpy()
    view[:] = 7
    assert (made.get_data_to_numpy() == 7).all()  # the same memory each time
    del made
    gc.collect()
    assert (view == 7).all()


def test_read_only_memory_stays_read_only(tmp_path: Path) -> None:
    np.arange(4, dtype=np.float32).tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", np.float32, "r")
    made = tensor("float32", [4])
    made.set_data_from_numpy(mapped)
    view = made.get_data_to_numpy()
    assert np.shares_memory(view, mapped)
    assert not view.flags.writeable


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3), np.float64), "type"),
        (np.zeros((2, 3), np.int32), "type"),
        (np.zeros((2, 3), ">f4"), "type|array is >f4"),
        (np.zeros((2, 2), np.float32), "size not equal"),
        (np.zeros((4, 3), np.float32), "size not equal"),
        (np.zeros((3, 2), np.float32).T, "C-contiguous"),
        (np.frombuffer(bytes(25), np.uint8)[1:].view(np.float32).reshape(2, 3), "aligned"),
    ],
    ids=["float64", "int32", "byte order", "too small", "too large", "Fortran order", "unaligned"],
)
def test_unfit_arrays_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        tensor("float32", [2, 3]).set_data_from_numpy(array)


def test_predict_equals_numpy_and_reads_the_array_each_time(graphs: Path) -> None:
    weight = np.load(graphs / "weight.npy")
    model = load(graphs / "affine.mindir")
    x, y = affine_inputs(8)
    np.testing.assert_allclose(run_affine(model, x, y), x @ weight + y, rtol=1e-5, atol=1e-6)
    x *= 2  # changed in place, without a second set_data_from_numpy
    result = model.predict(model.get_inputs())[0].get_data_to_numpy()
    np.testing.assert_allclose(result, x @ weight + y, rtol=1e-5, atol=1e-6)


def test_tensors_of_the_caller_and_several_outputs(graphs: Path) -> None:
    model = load(graphs / "doubles.mindir")
    own = []
    for given, array in zip(
        model.get_inputs(), (np.array([1, 2, 3, 4], np.float32), np.array([5, 6, 7, 8], np.int32)), strict=True
    ):
        made = tensor(array.dtype.name, [4])
        made.name = given.name
        made.set_data_from_numpy(array)
        own.append(made)
    floats, ints = (out.get_data_to_numpy() for out in model.predict(own))
    np.testing.assert_array_equal(floats, np.array([2, 4, 6, 8], np.float32))
    np.testing.assert_array_equal(ints, np.array([10, 12, 14, 16], np.int32))


def test_outputs_may_be_inputs_of_another_model(graphs: Path) -> None:
    first, second = load(graphs / "doubles.mindir"), load(graphs / "doubles.mindir")
    floats, ints = first.get_inputs()
    floats.set_data_from_numpy(np.array([1, 2, 3, 4], np.float32))
    ints.set_data_from_numpy(np.array([5, 6, 7, 8], np.int32))
    outputs = second.predict(first.predict([floats, ints]))
    np.testing.assert_array_equal(outputs[0].get_data_to_numpy(), np.array([4, 8, 12, 16], np.float32))
    np.testing.assert_array_equal(outputs[1].get_data_to_numpy(), np.array([20, 24, 28, 32], np.int32))


def test_inputs_keep_arrays_that_nobody_else_holds(graphs: Path) -> None:
    weight = np.load(graphs / "weight.npy")
    model = load(graphs / "affine.mindir")
    for index, given in enumerate(model.get_inputs()):  # after the loop the tensors do not exist either
        given.set_data_from_numpy(affine_inputs(8)[index])
    gc.collect()
    _ = [np.full((8, 4), np.nan, np.float32) for _ in range(100)]  # would reuse freed memory
    x, y = affine_inputs(8)
    result = model.predict(model.get_inputs())[0].get_data_to_numpy()
    np.testing.assert_allclose(result, x @ weight + y, rtol=1e-5, atol=1e-6)


def test_arrays_are_released_with_the_model(graphs: Path) -> None:
    model = load(graphs / "affine.mindir")
    x, y = affine_inputs(8)
    alive = weakref.ref(x)
    run_affine(model, x, y)
    del x
    gc.collect()
    assert alive() is not None
    del model
    gc.collect()
    assert alive() is None


def test_output_view_outlives_model_and_tensors(graphs: Path) -> None:
    weight = np.load(graphs / "weight.npy")
    x, y = affine_inputs(8)
    result = run_affine(load(graphs / "affine.mindir"), x, y)
    gc.collect()
    np.testing.assert_allclose(result, x @ weight + y, rtol=1e-5, atol=1e-6)


def test_resize_there_and_back(graphs: Path) -> None:
    weight = np.load(graphs / "weight.npy")
    model = load(graphs / "affine.mindir")
    for rows in (8, 1, 5, 8, 64, 1):
        model.resize(model.get_inputs(), [[rows, 4], [rows, 3]])
        x, y = affine_inputs(rows, seed=rows)
        result = run_affine(model, x, y)
        assert result.shape == (rows, 3)
        np.testing.assert_allclose(result, x @ weight + y, rtol=1e-5, atol=1e-6)


def test_resize_keeps_the_arrays_that_still_fit(graphs: Path) -> None:
    weight = np.load(graphs / "weight.npy")
    model = load(graphs / "affine.mindir")
    x, y = affine_inputs(8)
    run_affine(model, x, y)
    model.resize(model.get_inputs(), [[8, 4], [8, 3]])
    result = model.predict(model.get_inputs())[0].get_data_to_numpy()
    np.testing.assert_allclose(result, x @ weight + y, rtol=1e-5, atol=1e-6)


def test_predict_without_data_of_the_new_size_is_refused(graphs: Path) -> None:
    model = load(graphs / "affine.mindir")
    with pytest.raises(RuntimeError, match="input 'x' needs 128 bytes"):
        model.predict(model.get_inputs())
    run_affine(model, *affine_inputs(8))
    model.resize(model.get_inputs(), [[64, 4], [64, 3]])
    with pytest.raises(RuntimeError, match="input 'x' needs 1024 bytes"):
        model.predict(model.get_inputs())


@pytest.mark.parametrize(
    ("dims", "words"),
    [([[5, 4], [6, 3]], "resize failed"), ([[-1, 4], [-1, 3]], "resize failed"), ([[8], [8]], "number of dimensions")],
)
def test_bad_resize_is_refused_and_the_model_still_runs(graphs: Path, dims: list[list[int]], words: str) -> None:
    weight = np.load(graphs / "weight.npy")
    model = load(graphs / "affine.mindir")
    with pytest.raises(RuntimeError, match=words):
        model.resize(model.get_inputs(), dims)
    x, y = affine_inputs(8)
    np.testing.assert_allclose(run_affine(model, x, y), x @ weight + y, rtol=1e-5, atol=1e-6)


def test_predict_says_what_is_wrong_with_the_inputs(graphs: Path) -> None:
    model = load(graphs / "affine.mindir")
    run_affine(model, *affine_inputs(8))
    with pytest.raises(RuntimeError, match="1 inputs given, the model has 2"):
        model.predict(model.get_inputs()[:1])
    wrong_shape, wrong_type = tensor("float32", [2, 4]), tensor("int32", [8, 4])
    for made in (wrong_shape, wrong_type):
        made.get_data_to_numpy()
    with pytest.raises(RuntimeError, match=r"'x' is \[2, 4\], the model is set to \[8, 4\]: call Model.resize"):
        model.predict([wrong_shape, model.get_inputs()[1]])
    with pytest.raises(RuntimeError, match="'x' has another data type"):
        model.predict([wrong_type, model.get_inputs()[1]])


@pytest.mark.parametrize("kept", [0, 1, 100, 500, -1])
def test_cut_model_file_is_an_error_not_a_crash(graphs: Path, tmp_path: Path, kept: int) -> None:
    cut = tmp_path / "cut.mindir"
    cut.write_bytes((graphs / "affine.mindir").read_bytes()[:kept])
    with pytest.raises(RuntimeError, match="build_from_file failed"):
        load(cut)


def test_missing_model_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="does not exist"):
        load(tmp_path / "none.mindir")


def test_model_that_was_not_built() -> None:
    model = mslite.Model()
    assert model.get_inputs() == []
    with pytest.raises(RuntimeError, match="predict failed"):
        model.predict([])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="MindSpore Lite starts no more threads than there are processors")
def test_context_sets_the_number_of_threads(graphs: Path) -> None:
    """Runs in a child process, because threads of models from earlier tests are kept and shared."""
    done = run_support("affine_model", str(graphs / "affine.mindir"))
    assert done.stdout.strip() == "[0, 1]"  # the caller's thread is the other one


def test_context_reads_back_what_was_set() -> None:
    context = mslite.Context()
    context.cpu.thread_num = 3
    context.cpu.thread_affinity_core_list = [0, 1]
    context.cpu.precision_mode = "preferred_fp16"
    context.ascend.device_id = 2
    context.ascend.precision_mode = "preferred_optimal"
    assert context.cpu.thread_num == 3
    assert context.cpu.thread_affinity_core_list == [0, 1]
    assert context.cpu.precision_mode == "preferred_fp16"
    assert (context.ascend.device_id, context.ascend.precision_mode) == (2, "preferred_optimal")
    context.target = ["ascend"]
    assert len(context._context.get_target()) == 2  # the CPU is the second one


def test_threads_may_call_one_model_at_once(graphs: Path) -> None:
    """No lock is needed. All threads use the same data, because outputs share the model's memory."""
    weight = np.load(graphs / "weight.npy")
    model = load(graphs / "affine.mindir")
    x, y = affine_inputs(8)
    wrong = []

    def work(thread: int) -> None:
        own = [tensor("float32", [8, 4]), tensor("float32", [8, 3])]
        own[0].set_data_from_numpy(x.copy())
        own[1].set_data_from_numpy(y.copy())
        for step in range(200):
            result = model.predict(own)[0].get_data_to_numpy()
            if not np.allclose(result, x @ weight + y, rtol=1e-5, atol=1e-5):
                wrong.append((thread, step))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_missing_features_raise_an_error() -> None:
    with pytest.raises(RuntimeError, match="not part of this build"):
        mslite.Converter()
    with pytest.raises(RuntimeError, match="ModelParallelRunner init failed"):
        mslite.ModelParallelRunner()
