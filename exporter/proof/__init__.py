"""Compares an artifact with an independent reference, and measures its accuracy."""
