"""What no job may be, whatever cluster it is for."""

from pathlib import Path

import pytest

from moe_cluster.errors import JobError
from moe_cluster.job import JobSpec


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "wandb_api_key", "DB_PASSWORD"])
def test_a_secret_is_kept_out_of_a_job(name: str) -> None:
    with pytest.raises(JobError, match=f"environment {name}: looks like a secret"):
        JobSpec("small", Path("/run"), ("run",), environment={name: "x"})


@pytest.mark.parametrize("name", ["A B", "A=B", "", "1A", "A;B"])
def test_a_variable_has_a_name_that_a_shell_knows(name: str) -> None:
    with pytest.raises(JobError, match="letters, digits and _"):
        JobSpec("small", Path("/run"), ("run",), environment={name: "x"})


def test_a_name_that_only_sounds_like_a_secrets_is_none() -> None:
    JobSpec("small", Path("/run"), ("run",), environment={"TOKENIZERS_PARALLELISM": "false"})
