"""All targets by name."""

from __future__ import annotations

from .artifact_targets import ARTIFACT_TARGETS
from .checkpoint_targets import CHECKPOINT_TARGETS
from .request_targets import REQUEST_TARGETS
from .target import Target

TARGETS: dict[str, Target] = {
    target.name: target for target in (*ARTIFACT_TARGETS, *CHECKPOINT_TARGETS, *REQUEST_TARGETS)
}
