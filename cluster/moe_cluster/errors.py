"""What a launcher or a cluster can explain to its user; the command line shows the sentence and nothing else."""

from moe_cluster.contract import FAILED, USAGE


class ClusterError(Exception):
    """The cluster did not do what was asked; the message has its own words and the way out."""

    exit_code = FAILED


class JobError(ClusterError):
    """A job that cannot be submitted as it was asked for: nothing was started."""

    exit_code = USAGE
