"""POST /v1/responses, OpenAI's newer form of chats: its fields, and its responses and events."""
