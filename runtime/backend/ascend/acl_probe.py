"""`python -m edgellama.backend.ascend.acl_probe ID`: prints what CANN's Python module (pyACL) reports about a device.

The output is one JSON object. The command is a separate process, because a device that the caller's process opens would
interfere with MindSpore Lite's use of it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

DDR, HBM = 0, 1  # aclrtMemAttr


def probe(acl: Any, device: int) -> dict[str, Any]:
    """Ask pyACL about the device with the number `device`. The keys of the result:

    - soc: the SoC version
    - count: number of devices
    - free, total: bytes of the device's memory
    - error: the call that failed, with its status
    """
    acl.init()
    count, status = acl.rt.get_device_count()
    answer: dict[str, Any] = {"soc": acl.get_soc_name(), "count": count}
    if status != 0:
        return {**answer, "error": f"acl.rt.get_device_count gave {status}"}
    if device >= count:
        return answer
    if (status := acl.rt.set_device(device)) != 0:
        return {**answer, "error": f"acl.rt.set_device({device}) gave {status}"}
    for kind in (HBM, DDR):  # a chip without HBM reports 0 bytes of it, or an error
        free, total, status = acl.rt.get_mem_info(kind)
        if status == 0 and total > 0:
            answer |= {"free": free, "total": total}
            break
    acl.rt.reset_device(device)
    acl.finalize()
    return answer


if __name__ == "__main__":
    try:
        import acl
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
    else:
        print(json.dumps(probe(acl, int(sys.argv[1]))))
