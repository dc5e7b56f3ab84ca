"""An HTTP endpoint for an artifact, compatible with OpenAI's: `edgellama serve ARTIFACT` (the extra `serve`).

In reading order:
- sequence.py: one sequence, its tokens and its visible text
- scheduler.py: which sequences run in the engine's rows, and when
- fields/, request.py: the fields of a request and their limits
- preprocess.py: from a request to sequences
- answers/: how an answer is read, and its parts
- responses_api/: /v1/responses
- responses.py: from events to OpenAI's JSON objects
- texts/: given texts: /tokenize and /detokenize, log-probabilities of prompts, and embeddings
- bodies.py: request bodies, read and validated
- event_stream.py: events from the engine's thread to the responses
- app.py: routes, access and errors
- openapi.py: the description at /openapi.json
- metrics.py, errors.py: Prometheus metrics, OpenAI's error object
- command.py: the command line
- connection.py: limits of connections
- http_server.py: runs the application with uvicorn until a signal
- bench.py: measures a server
SERVER.md is the user's guide, deployment/DEPLOYMENT.md that of whoever runs the server for others. The scheduler knows
nothing about HTTP.
"""
