"""Memory that nobody has written to holds NaN in the tests of routers and experts.

They are built with such memory, and a test that gives them weights may forget some: it fails each time then, not now
and then.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

MAKERS = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty")]


def poisoned(maker: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same maker of tensors, which fills them with NaN."""

    def made(*args: object, **kwargs: object) -> Tensor:
        tensor = maker(*args, **kwargs)
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return made


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Poison new tensors while tests in a folder `moe` run; elsewhere some are too large to be written to."""
    if request.path.parent.name != "moe":
        yield
        return
    # At the first use of a device as a context torch notes which functions make tensors: let it be its own.
    with torch.device("cpu"):
        torch.empty(0)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in MAKERS:
            patch.setattr(owner, name, poisoned(getattr(owner, name)))
        yield
