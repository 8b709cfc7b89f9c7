"""No garbage is collected while training code is imported, and all goes on as before afterwards."""

import gc

import pytest

from moe_train.imports import without_collecting


def failing_import() -> None:
    with without_collecting():
        assert not gc.isenabled()
        raise ImportError


@pytest.mark.parametrize("was_enabled", [True, False])
def test_collection_is_off_inside_and_as_before_afterwards_also_after_an_error(was_enabled):
    before = gc.isenabled()
    try:
        (gc.enable if was_enabled else gc.disable)()
        with pytest.raises(ImportError):
            failing_import()
        assert gc.isenabled() is was_enabled
    finally:
        (gc.enable if before else gc.disable)()
