"""Kernels of our own, in Triton, each with the same in PyTorch beside it."""
