"""An OpenAI-compatible endpoint for an artifact: python -m runtime serve ARTIFACT (the `serve` extra).

In reading order: answer.py (one answer on its way), scheduler.py (which answers run in the engine's rows, and when),
schema.py (what a request may say), prepare.py (a request as answers), responses.py (answers as OpenAI's objects),
app.py (HTTP), command.py (the command line). The scheduler knows nothing of HTTP, nor the rest of the engine's thread.
"""
