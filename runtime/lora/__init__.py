"""LoRA adapters as PEFT saves them: their configuration, and their tensors."""
