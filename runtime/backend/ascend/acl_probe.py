"""`python -m runtime.backend.ascend.acl_probe ID` prints what CANN's Python module (pyACL) says of a device, as JSON.

A process of its own: opening a device here would meet MindSpore Lite's own use of it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

DDR, HBM = 0, 1  # aclrtMemAttr


def probe(acl: Any, device: int) -> dict[str, Any]:
    """count: devices; soc: the chip's name; free, total: bytes of the device's memory; error: what stopped it."""
    acl.init()
    count, status = acl.rt.get_device_count()
    answer: dict[str, Any] = {"soc": acl.get_soc_name(), "count": count}
    if status != 0:
        return {**answer, "error": f"acl.rt.get_device_count gave {status}"}
    if device >= count:
        return answer
    if (status := acl.rt.set_device(device)) != 0:
        return {**answer, "error": f"acl.rt.set_device({device}) gave {status}"}
    for kind in (HBM, DDR):  # a chip without HBM says 0 of it, or an error
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
