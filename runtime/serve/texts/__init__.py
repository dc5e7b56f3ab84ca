"""Answers about given texts: token ids, log-probabilities of prompts, and embeddings."""
