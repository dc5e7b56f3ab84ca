"""LoRA adapters at run time, with the methods that transformers and PEFT give their models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .engine.adapters import BASE
from .engine.engine import Engine
from .errors import UserError, shown


class AdapterMethods:
    """The methods of LlamaForCausalLM that load and choose adapters. The base model stays in memory once.

    An adapter that is loaded, chosen or deleted counts from the next call on: a running generation keeps what it has.
    Threads that share a model choose with adapter_names of generate() and stream(), since set_adapter is for all.
    """

    engine: Engine
    _active_adapter: str | None = None
    _adapters_enabled = True

    def load_adapter(self, path: str | Path, adapter_name: str = "default", *, scale: float = 1.0) -> None:
        """Load a LoRA adapter beside the model's weights. The first one becomes active, as in PEFT.

        Only artifacts of the cpu target take adapters at run time. The others, and adapters that change more than
        linear layers inside the network (DoRA, modules_to_save, biases, embeddings, lm_head), need an export with LORA.

        Args:
            path: the folder that PEFT's save_pretrained() wrote.
            adapter_name: its name for the other methods.
            scale: multiplies its effect.

        Raises:
            UserError: the adapter does not fit the model or cannot apply at run time, or the name is taken.
        """
        self.engine.adapters.load(Path(path).expanduser(), adapter_name, scale)
        if self._active_adapter is None:
            self._active_adapter = adapter_name

    def set_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Make an adapter active, and enable adapters; a list has one name. Raises UserError for an unknown one."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) != 1:
            raise UserError(
                f"set_adapter got {len(names)} names; at run time a row has one adapter. Give one, or merge several at "
                "export: LORA=one,two"
            )
        self.engine.adapters.number(names[0])
        self._active_adapter, self._adapters_enabled = names[0], True

    def disable_adapters(self) -> None:
        """Generate with the base model, until enable_adapters or set_adapter."""
        self._adapters_enabled = False

    def enable_adapters(self) -> None:
        """Generate with the active adapter again."""
        self._adapters_enabled = True

    def active_adapters(self) -> list[str]:
        """Return the name of the adapter that the next call uses; an empty list for the base model."""
        active = self._active_adapter
        return [active] if active is not None and self._adapters_enabled and active != BASE else []

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; if it was active, none is. Raises UserError if no adapter has this name."""
        self.engine.adapters.delete(adapter_name)
        if self._active_adapter == adapter_name:
            self._active_adapter = None

    def _adapter_numbers(self, names: Sequence[str] | None, rows: int) -> list[int]:
        """Return the number of each row's adapter.

        Args:
            names: of generate(); None takes the active adapter.
            rows: how many there are.

        Raises:
            UserError: a name is unknown, or there are not as many as rows.
        """
        if names is None:
            names = [*self.active_adapters(), BASE][:1] * rows
        elif isinstance(names, str) or len(names) != rows:
            raise UserError(
                f"adapter_names is {shown(names)}; needed: a list with a name for each prompt ({rows}), or {BASE!r} "
                "for no adapter"
            )
        return [self.engine.adapters.number(name) for name in names]
