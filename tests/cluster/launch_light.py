"""The `moe-train` command line, with the light worker in the trainer's place."""

import functools
import sys

from moe_train import cli, launch

if __name__ == "__main__":
    launch.Launch = functools.partial(launch.Launch, module="light_worker")
    sys.exit(cli.main())
