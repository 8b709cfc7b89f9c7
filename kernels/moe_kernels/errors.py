"""Defines the errors of the kernels, which name the rank and the operation."""


class KernelError(RuntimeError):
    """Raised if a kernel is called with something it does not support, or its library cannot be built."""


class PeerTimeoutError(KernelError):
    """Raised if a rank of the expert group does not reach an operation in time, reaches another one, or has exited."""
