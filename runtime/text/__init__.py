"""Text to token ids and back: the tokenizer, chat templates, and text that arrives token by token."""
