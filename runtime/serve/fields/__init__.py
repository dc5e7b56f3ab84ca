"""The fields of requests: what several kinds of requests share, messages, and tokenization. request.py has the rest."""
