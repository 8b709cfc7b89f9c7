"""`python -m moe_train.train`, as launchers start it."""

import runpy


def test_what_a_launched_worker_logs_is_known_as_moe_trains_own():
    """Process shows and keeps what loggers below `moe_train` say; a module that is run is called `__main__`."""
    assert runpy.run_module("moe_train.train", run_name="as_run")["log"].name == "moe_train.train"
