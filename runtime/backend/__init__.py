"""What runs a graph: MindSpore Lite, the native libraries, and Ascend devices."""
