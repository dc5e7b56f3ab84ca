"""The checks of settings, and the names of transformers that are no settings here."""
