"""The custom operators: what they mean (reference.py), on a host CPU (cpu/), on Ascend (ascend/)."""
