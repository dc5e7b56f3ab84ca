"""Coverage-guided fuzzing of everything that reads files and requests of strangers: `python tests/fuzz`."""
