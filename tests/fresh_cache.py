"""Gives a test an empty cache of corpora and tokenizers, with the kernels that this machine has compiled already.

The tests of the build itself (tests/kernels/test_kernels_build.py) compile into caches of their own.
"""

from pathlib import Path

from moe_kernels.build import cache_folder


def fresh_cache(folder: Path) -> Path:
    """Returns `folder`/cache, made if needed; its kernels are a link, since to compile them takes seconds."""
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    kernels = cache / "kernels"
    if not kernels.exists():
        shared = cache_folder()
        shared.mkdir(parents=True, exist_ok=True)
        kernels.symlink_to(shared.resolve())
    return cache
