"""Changes manifest.json of an artifact."""

from __future__ import annotations

import json
from pathlib import Path

from edgellama.artifact.manifest import MANIFEST, digest


def rewrite(folder: Path, **changes: object) -> None:
    """Changes fields of the manifest, or removes those given as `...`, and writes the digest that then fits."""
    values = json.loads((folder / MANIFEST).read_text())
    values.pop("digest")
    values.update(changes)
    values = {key: value for key, value in values.items() if value is not ...}
    (folder / MANIFEST).write_text(json.dumps({**values, "digest": digest(values)}))
