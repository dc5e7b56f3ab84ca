"""`make torture`: injects faults into the product and counts what happens. README.md says how."""
