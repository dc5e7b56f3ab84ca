"""The errors made from logs of CANN and MindSpore Lite. The logs are recorded; simulated ones are marked."""

from __future__ import annotations

import os

import pytest

from edgellama.backend.ascend.cann_log import explain
from edgellama.backend.native_log import native_log_on_failure
from edgellama.errors import UserError
from support import ascend_texts as texts


@pytest.mark.parametrize(
    ("log", "operator", "code", "cause"),
    [
        (texts.EZ3003, "aclnnAddCustom", "EZ3003", "operator aclnnAddCustom (node aclnnAddCustom1) is not supported"),
        (texts.EZ3003_PID, "ConvBnFilterHost", "EZ3003", "(node import/conv2d_1/convolution_filter_host)"),
        (texts.EZ3002, "TransData", "EZ3002", "because: [tbe-custom]:op type TransData is not found in this op store"),
        (texts.E19010, "ai.onnx::23::Div", "E19010", "(node model1 div node)"),
        (texts.LITE_UNSUPPORTED, "WaveletPool", None, "operator WaveletPool is not supported"),
    ],
)
def test_recorded_logs_name_the_operator(log: str, operator: str, code: str | None, cause: str) -> None:
    found = explain("some line before\n" + log)
    assert found is not None and (found.operator, found.code) == (operator, code)
    assert cause in found.cause and "This CANN has no such kernel" in found.remedy


def test_our_operator_s_absence_names_our_package() -> None:
    for log in (texts.OURS_MISSING, texts.OURS_UNKNOWN):  # SIMULATED
        found = explain(log)
        assert found is not None and found.operator == "FusedAttention" and "make kernels" in found.remedy


def test_our_operator_s_own_refusal_is_passed_on() -> None:
    found = explain(texts.OURS_REFUSED + texts.EZ3003)  # SIMULATED
    assert found is not None and found.operator == "FusedAttention"
    assert found.cause == "operator FusedAttention refused: 9 query heads are not a multiple of 2 key/value heads"
    found = explain(texts.HEAD_REFUSED)  # SIMULATED
    assert found is not None and found.operator == "LmHead"
    assert found.cause == "operator LmHead refused: the hidden size 72 is not a multiple of 16 up to 65535"
    assert "`make kernels`, then export and convert again" in found.remedy
    found = explain("[ERROR] edgellama: no memory\n")
    assert found is not None and found.operator is None and "an operator of this project refused: no mem" in found.cause


@pytest.mark.parametrize(
    ("line", "cause", "remedy"),
    [  # SIMULATED: texts from the sources of MindSpore Lite
        ("Acl open device 3 failed.", "device 3 cannot be opened", "npu-smi"),
        ("Malloc device buffer failed , buffer size 4096", "no memory for 4096 bytes", "CONTEXT"),
        ("Call aclrtMalloc failed, err_code = 207001", "no memory left", "CONTEXT"),
        ("Current batch size 128 is invalid, please check", "the gear of 128 tokens was not converted", "make convert"),
        (
            "The dynamic dim model supports a maximum total winput shape of 128! Current num:249",
            "ge.dynamicDims",
            "Export",
        ),
        ("Not support dynamic input", "without gears", "make convert"),
        ("Only support CustomAscend, but got MatMul, node x", "still holds MatMul", "make convert"),
        ("Call aclmdlLoadFromMem failed, ret = 545005", "(status 545005)", "make convert"),
        ("Byte size of input 7 != the size expected, given", "input 7 has another size", "make convert"),
        ("libascendcl.so: cannot open shared object file: No such", "CANN's libraries are not found", "set_env.sh"),
        ("The current mindspore can only support the maximum mind ir version: 1", "MindIR version", "later MindSpore"),
    ],
)
def test_lines_of_mindspore_lite_have_a_cause_and_a_remedy(line: str, cause: str, remedy: str) -> None:
    found = explain(f"[ERROR] ME(1,7f,python): [x.cc:1] F] {line}")
    assert found is not None and cause in found.cause and remedy in found.remedy


def test_an_unknown_code_is_given_as_it_stands() -> None:
    found = explain(texts.UNKNOWN_CODE)  # SIMULATED
    assert found is not None and found.cause == "E40021: Failed to compile Op [Cast_3]" and found.operator is None
    assert explain("nothing known") is None


def test_a_failure_shows_the_meaning_before_the_log() -> None:
    with (
        pytest.raises(UserError, match=r"(?s)x: could not load: meant this\nThe native log ends:\n  line"),
        native_log_on_failure("x: could not load", explain=lambda log: "meant this" if "line" in log else None),
    ):
        os.write(2, b"line\n")
        raise RuntimeError("failed")
