"""MindIR: what an export writes into a graph file, and the checks before native code reads one."""
