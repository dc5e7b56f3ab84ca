"""The LoRA adapters that a model has loaded at run time: their names, and which of them each row of a pass uses.

The kernels add the low-rank products (kernels/cpu/layer/adapters.h), so the weights stay as they are, and an adapter
takes only the memory of its own matrices, in float32. An adapter has a number besides its name. The number is never
used again, so what the cache holds of a deleted adapter is no prefix for a later one of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifact.manifest import Manifest
from ..backend.ascend.cache import DeviceCache
from ..errors import UserError, shown
from .engine_lock import EngineLock
from .kv_cache import KVCache
from .prefix_cache import PrefixCache

if TYPE_CHECKING:
    from edgellama.kernels.cpu.adapters import AdapterTable

BASE = "__base__"  # PEFT's name for no adapter


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter in the kernels' table.

    Attributes:
        number: its number there, above 0.
        folder, scale: where it comes from, and what its effect is multiplied by.
        content: identifies its files and the scale, for session files.
    """

    number: int
    folder: str
    scale: float
    content: str


class Adapters:
    """The adapters of one engine.

    Attributes:
        loaded: name -> the adapter, in the order in which they were loaded.
    """

    def __init__(
        self, manifest: Manifest, cache: KVCache | DeviceCache, prefixes: PrefixCache, engine_lock: EngineLock
    ) -> None:
        """Begin without adapters.

        Args:
            manifest: of the artifact.
            cache: whose arrays the graphs are bound to.
            prefixes: has the adapter of each row.
            engine_lock: held while the table changes.
        """
        self.loaded: dict[str, LoadedAdapter] = {}
        self._manifest, self._cache, self._prefixes, self._lock = manifest, cache, prefixes, engine_lock
        self._table: AdapterTable | None = None  # made with the first adapter
        self._last = 0

    def load(self, folder: Path, name: str, scale: float) -> None:
        """Load a PEFT adapter. Waits for a running generation.

        Raises:
            UserError: the target takes no adapters at run time, the name is taken, or the adapter is not one that fits
                the model and can apply at run time.
        """
        from ..backend.adapters import read_adapter, require_run_time  # late: most models have no adapter

        require_run_time(self._manifest, str(folder))
        if not isinstance(name, str) or not name.strip() or name == BASE:
            raise UserError(f"the adapter's name is {shown(name)}; needed: a text other than {BASE!r}")
        if name in self.loaded:
            raise UserError(f"there is an adapter {name!r} already. Give another name, or call delete_adapter first")
        if not np.isfinite(scale) or scale == 0:
            raise UserError(f"the scale of the adapter {name!r} is {scale}; needed: a number other than 0")
        found = read_adapter(folder, scale, self._manifest)
        with self._lock.take():
            table = self._table or self._new_table()
            number = self._last = self._last + 1
            try:
                for matrices in found.matrices:
                    table.add(number, matrices)
            except MemoryError as error:
                table.remove(number)
                raise UserError(f"{folder}: there is no memory for the adapter. Free some, or merge it") from error
            except BaseException:
                table.remove(number)
                raise
            self.loaded[name] = LoadedAdapter(number, str(folder), scale, found.content)

    def delete(self, name: str) -> None:
        """Forget an adapter. Waits for a running generation. Raises UserError if no adapter has this name."""
        with self._lock.take():
            number = self.number(name)
            if self._table is not None and number:
                self._table.remove(number)
                del self.loaded[name]
                self._reset_rows()

    def number(self, name: str) -> int:
        """Return the number of an adapter, 0 for BASE. Raises UserError if no adapter has this name."""
        if name == BASE:
            return 0
        if not isinstance(name, str) or name not in self.loaded:
            known = ", ".join(map(repr, self.loaded)) or "none is loaded"
            raise UserError(f"no adapter {shown(name)} ({known}). Load it with model.load_adapter(folder, name)")
        return self.loaded[name].number

    def choose(self) -> None:
        """Tell the kernels the adapter of each row, before a pass. The caller holds the engine's lock.

        Raises UserError for an adapter that was deleted after the generation had got its number.
        """
        if self._table is None:
            return
        try:
            self._table.choose(self._prefixes.adapter)
        except ValueError as error:
            self._reset_rows()  # so that only this pass fails
            raise UserError("the adapter of this generation was deleted. Load it again") from error

    def content(self, number: int) -> str:
        """Return what identifies an adapter, an empty text for number 0. Raises UserError if it was deleted."""
        if not number:
            return ""
        found = next((adapter for adapter in self.loaded.values() if adapter.number == number), None)
        if found is None:
            raise UserError("the adapter of this text was deleted. Load it again, and continue the text with it")
        return found.content

    def with_content(self, content: str) -> int | None:
        """Return the number of a loaded adapter of this content, 0 for an empty text, or None."""
        if not content:
            return 0
        return next((adapter.number for adapter in self.loaded.values() if adapter.content == content), None)

    def _new_table(self) -> AdapterTable:
        from edgellama.kernels.cpu.adapters import AdapterTable

        arrays = self._cache.arrays
        layers = range(sum(name.startswith("k_cache.") for name in arrays))
        self._table = AdapterTable([np.asarray(arrays[f"k_cache.{layer}"]) for layer in layers])
        return self._table

    def _reset_rows(self) -> None:
        """Forget rows of adapters that are no longer loaded."""
        numbers = {adapter.number for adapter in self.loaded.values()}
        for row, number in enumerate(self._prefixes.adapter.tolist()):
            if number not in numbers:
                self._prefixes.assign(row, 0)
