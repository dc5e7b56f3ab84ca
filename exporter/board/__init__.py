"""make board-check: what a board answers to the questions that no host without an NPU can."""
