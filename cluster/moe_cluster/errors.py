"""Defines the errors of launchers and clusters; the command line prints their message and no traceback."""

from moe_cluster.contract import FAILED, USAGE


class ClusterError(Exception):
    """Reports that a cluster failed or refused; the message quotes it and has the way out."""

    exit_code = FAILED


class JobError(ClusterError):
    """Reports a job that is invalid: nothing was started."""

    exit_code = USAGE
