"""Conversations: chats and sessions, which keep their tokens and their part of the cache between answers."""
