"""The Ascend C operator package, and the stand-in that runs its kernels on an ordinary host."""
