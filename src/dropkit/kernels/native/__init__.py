"""The compiled kernels: the same masks at the speed of memory, on a CPU."""
