"""The op sets: how each part of the network is computed on a target.

- specs.py: what each op set is: formats, caches, inputs, outputs. Free of MindSpore.
- portable.py, cpu.py, ascend.py: the cells that exporter/network/llama.py builds the network from, and `pieces`, which
  makes the data of a weight block by block.
- cpu_weights.py, ascend_weights.py: the weights of these op sets.
- ascend_model_checks.py: whether a chip can run a model.
"""
