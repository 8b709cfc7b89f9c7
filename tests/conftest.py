"""What all tests share. Being here puts this folder on the import path, so tests can import its modules."""

import os
import shutil
import signal
import stat
from collections.abc import Iterator
from typing import NoReturn

import pytest
from jaxtyping import install_import_hook

# The shapes and types in the signatures of these modules are checked whenever a test calls them. That must be
# asked for before any of them is imported. In the worker processes of distributed tests they are not checked.
CHECKED_MODULES = (
    "moe_train.data.batch",
    "moe_train.model",
    "moe_train.moe",
    "moe_train.objectives",
    "moe_train.random",
    "moe_train.results",
)
install_import_hook(CHECKED_MODULES, "beartype.beartype")

# Each process computes with one thread unless a test wants more: two test processes fill the two cores of CI, and a
# thread of OpenMP that waits for another one burns the core that the other one needs. OpenMP reads this when it is
# loaded, with torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `moe-train run` sets it

# A shell script starts what it puts into the background with SIGINT ignored. Processes inherit that, so those that a
# test interrupts would not hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["small_run", "chosen_library", "poisoned_memory"]


def require_tool(name: str, package: str) -> str:
    """Path of a program that a test needs; without it the test is skipped, or fails if none may be."""
    path = shutil.which(name)
    if path is None:
        skip_or_fail(f"{name} is not installed (Debian package {package})")
    return path


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test for something that this machine lacks, or fail it where nothing may be lacking."""
    if os.environ.get("MOE_TRAIN_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and MOE_TRAIN_REQUIRE_ALL=1 says that no test may be skipped")
    pytest.skip(reason)


@pytest.fixture(autouse=True, scope="module")
def null_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a file of tests after which /dev/null is a plain file: as root, any program may have replaced it."""
    was_device = stat.S_ISCHR(os.stat(os.devnull).st_mode)
    yield
    is_device = stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert is_device or not was_device, (
        f"{request.node.name} or a test beside it has replaced {os.devnull} by a plain file"
    )
