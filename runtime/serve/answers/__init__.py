"""Answers of chats: their form (text, thoughts, tool calls), and the parts of one that arrives."""
