"""edgellama board-check: answers, on a board, the questions that a host without an NPU leaves open."""
