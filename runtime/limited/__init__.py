"""Work on input of strangers in a process of its own, with limits on memory, processor time and output."""
