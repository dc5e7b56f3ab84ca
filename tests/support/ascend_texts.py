"""Output of npu-smi, CANN and MindSpore Lite.

- RECORDED: users of boards posted it in public; at most shortened.
- SIMULATED: built from the format strings of public sources, because no recording was found.
"""

from __future__ import annotations

# RECORDED: an OrangePi AIpro of 8 GB.
SMI_310B = """\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 23.0.0                                   Version: 23.0.0                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 0       310B4                 | Alarm           | 0.0          58                15    / 15            |
| 0       0                     | NA              | 0            2500 / 7545                             |
+===============================+=================+======================================================+
"""

# RECORDED: an Atlas 300I. The slot is NPU 6, its only device is 0. With a process table.
SMI_310P = """\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 25.3.rc1                                 Version: 25.3.rc1                                     |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 6       310P3                 | OK              | NA           50                0     / 0             |
| 0       0                     | 0000:84:00.0    | 0            1839 / 21525                            |
+===============================+=================+======================================================+
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Chip                  | Process id      | Process name             | Process memory(MB)        |
+===============================+=================+======================================================+
| No running processes found in NPU 6                                                                    |
+===============================+=================+======================================================+
"""

# RECORDED: the rows. The head comes from other recordings of the same release.
SMI_310P_TWO = """\
| npu-smi 22.0.2                                   Version: 22.0.2                                       |
+-------------------+-----------------+------------------------------------------------------+
| NPU     Name      | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device    | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===================+=================+======================================================+
| 0       310P3     | OK              | 15.8         42                0    / 0              |
| 0       0         | 0000:82:00.0    | 0            1074 / 21534                            |
+===================+=================+======================================================+
| 1       310P3     | OK              | 15.4         43                0    / 0              |
| 0       1         | 0000:89:00.0    | 0            1070 / 21534                            |
+===================+=================+======================================================+
"""

# RECORDED: a server of the first Ascend 910. Its chips have DDR and HBM; the table has no column Device.
SMI_910 = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B                | OK            | 70.0        34                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           1197 / 13553      1365 / 32768         |
+===========================+===============+====================================================+
| 1     910B                | OK            | 66.9        34                0    / 0             |
| 0                         | 0000:81:00.0  | 0           2411 / 15665      4    / 32768         |
+===========================+===============+====================================================+
"""

# RECORDED: one of the eight rows of a server with the Ascend 910B.
SMI_910B4_1 = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B4-1             | OK            | 91.8        36                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3451 / 65536         |
+===========================+===============+====================================================+
"""

# RECORDED: CANN's reports, each from another public post.
EZ3003 = """\
EZ3003: 2024-06-26-16:57:38.215.381 No supported Ops kernel and engine are found for [aclnnAddCustom1], optype \
[aclnnAddCustom].
    Possible Cause: The operator is not supported by the system. Therefore, no hit is found in any operator \
information library.
    Solution: 1. Check that the OPP component is installed properly. 2. Submit an issue to request for the support of \
this operator type.
"""
EZ3003_PID = """\
EZ3003: [PID: 3482331] 2025-02-25-14:07:19.774.362 No supported Ops kernel and engine are found for \
[import/conv2d_1/convolution_filter_host], optype [ConvBnFilterHost].
"""
EZ3002 = """\
EZ3002: [PID: 603] 2025-06-23-10:51:59.636.525 Optype [TransData] of Ops kernel [AIcoreEngine] is unsupported. \
Reason: [tbe-custom]:op type TransData is not found in this op store.[tbe-custom]:op type TransData is not found.
        Possible Cause: The operator type is unsupported in the operator information library due to specification \
mismatch.
"""
E19010 = "E19010: No parser is registered for Op [model1 div node, optype [ai.onnx::23::Div]]."
LITE_UNSUPPORTED = """\
[mindspore/lite/tools/converter/converter_context.h:1] PrintOps] UNSUPPORTED OP LIST:
[mindspore/lite/tools/converter/converter_context.h:1] PrintOps] FMKTYPE: MINDIR, OP TYPE: WaveletPool
[mindspore/lite/tools/converter/converter.cc:1] RunConverter] CONVERT RESULT FAILED:-300 Failed to find operator.
"""

# SIMULATED: from format strings in the sources of GE, MindSpore Lite and this project's operator package.
OURS_MISSING = EZ3003.replace("aclnnAddCustom1", "Default/FusedAttention-op0").replace(
    "aclnnAddCustom", "FusedAttention"
)
OURS_UNKNOWN = "EZ0501: IR for Op [Default/FusedAttention-op0, optype [FusedAttention]], is not registered.\n"
OURS_REFUSED = "[ERROR] edgellama: FusedAttention: 9 query heads are not a multiple of 2 key/value heads\n"
HEAD_REFUSED = "[ERROR] edgellama: LmHead: the hidden size 72 is not a multiple of 16 up to 65535\n"
UNKNOWN_CODE = "E40021: [PID: 7] 2025-02-25-14:07:19.774.362 Failed to compile Op [Cast_3].\n"
