"""Provides expert-parallel kernels for Mixture-of-Experts models: CUDA and a CPU twin of the same algorithm.

It depends on torch but not on moe_train. Read kernels/README.md for the algorithm, `csrc/interface.h` for what the
libraries export, `select.py` for which of them runs.
"""
