"""The targets' names, for the driver, which must not import what the targets test."""

NAMES = (
    *("json", "manifest", "weights", "mindir", "tokenizer", "generation_config", "session"),
    *("config", "gguf", "folder"),
    *("chat_request", "completion_request", "messages", "template"),
)
