"""Conversion for Ascend boards with CANN, and the check of a board."""
