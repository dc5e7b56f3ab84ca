"""Running artifacts of the Ascend targets: which device, what it can hold, its tensors, and what its errors mean."""
