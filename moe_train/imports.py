"""Keeps Python from collecting garbage while it imports training code.

An import makes hundreds of thousands of objects that stay, and a collection among them walks over all there are: with
torch and sympy loaded that is 0.1 s each time, 0.3 s of a start in all.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collecting() -> Iterator[None]:
    """Runs a block without garbage collection, and collects afterwards only if that was on before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
