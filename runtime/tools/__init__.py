"""Tool calls: how models write them, how they are read as they arrive, and grammars that only allow valid ones.

Each file named after a syntax has one ToolSyntax. `choose.py` selects it by the chat template.
"""
