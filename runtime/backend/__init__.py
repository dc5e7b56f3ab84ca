"""The backends that run a graph: MindSpore Lite on the host CPU (`lite_graph.py`) and on Ascend devices (`ascend/`)."""
