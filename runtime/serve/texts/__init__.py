"""Answers about given texts: token ids, and log-probabilities of prompts."""
