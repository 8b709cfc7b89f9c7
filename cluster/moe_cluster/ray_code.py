"""The code that a Ray cluster is sent with a job: the three packages of moe-train as they are here."""

import importlib.util
from pathlib import Path

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
EXCLUDED = ("__pycache__",)
PACKAGES = ("moe_train", "moe_cluster", "moe_kernels")


def code_packages() -> list[str]:
    """Folders of the packages, found without importing them."""
    found = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        found.append(str(Path(spec.origin).parent))
    return found
