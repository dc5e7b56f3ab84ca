"""Conversations: chats and sessions that keep their context between answers."""
