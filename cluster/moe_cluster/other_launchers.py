"""Removes the variables with which launchers tell a process which worker it is.

A pod or a shell of a cluster may have them set for a process that nobody launched. Only `moe-train` decides how many
workers there are, and its launchers set the variables that their workers need.
"""

from collections.abc import Mapping

NAMES = frozenset(
    {
        # torchrun
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
        *("ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PYTHON_EXEC"),
        *("NODE_RANK", "CROSS_RANK", "CROSS_SIZE"),  # Lightning, DeepSpeed
        *("SLURM_PROCID", "SLURM_LOCALID"),
        *("MPI_LOCALRANKID", "MPI_LOCALNRANKS", "JSM_NAMESPACE_RANK", "FLUX_TASK_RANK"),
    }
)
PREFIXES = (
    "TORCHELASTIC_",
    "PET_",  # torchrun takes an option from each of these
    "OMPI_COMM_WORLD_",
    "OMPI_UNIVERSE_",
    "PMI_",
    "PMIX_",
    "MV2_COMM_WORLD_",
    "PALS_",
)


def without_other_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns `environment` without the variables of other launchers."""
    return {name: value for name, value in environment.items() if not is_of_launcher(name)}


def is_of_launcher(name: str) -> bool:
    """Returns whether a variable says which worker a process is, or how it meets the others."""
    return name in NAMES or name.startswith(PREFIXES)
