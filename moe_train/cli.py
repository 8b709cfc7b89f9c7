"""The command line. Every command imports what it needs when it runs, so that help and errors come at once.

`run` is in launch.py, `show` in show.py; all others belong to their packages, which parse their own arguments. This is
one of the two places that read the environment.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from moe_cluster.errors import ClusterError
from moe_cluster.other_launchers import is_of_launcher
from moe_cluster.output import finish_output, lost_output, protect_output
from moe_train.arguments import (
    Parser,
    add_overrides,
    count,
    count_or_range,
    folder,
    parse_with_overrides,
    positive,
    resume_from,
)
from moe_train.data.in_thread import end_abandoned
from moe_train.errors import MoETrainError, UsageError

DEBUG_VARIABLE = "MOE_TRAIN_DEBUG"
CACHE_VARIABLE = "MOE_TRAIN_CACHE"
INTERRUPTED = 1

DESCRIPTION = "Train Mixture-of-Experts transformers from one YAML recipe."
EPILOG = """\
examples:
  moe-train run recipes/switch/tiny.yaml                            train with one worker, here
  moe-train run recipes/switch/tiny.yaml --workers 4 parallel.expert=2 optim.lr=1e-3
  moe-train show recipes/switch/tiny.yaml                           show sizes and validation errors
  moe-train plan recipes/artetxe/1.1t.yaml --world 512              say what an update costs each worker
  moe-train monitor runs/switch-tiny --html experts.html            chart the load of the experts
  moe-train submit recipes/switch/tiny.yaml --cluster slurm --nodes 2 --dry-run
  moe-train status runs/switch-tiny                                 show the run's state, on any cluster

exit codes: 0 done, 1 failed, 2 invalid command line or recipe, 75 stopped and saved.
MOE_TRAIN_DEBUG=1 shows tracebacks; MOE_TRAIN_CACHE=DIR is where corpora and tokenizers are cached.
"""
RUN_EPILOG = """\
examples:
  moe-train run recipes/switch/tiny.yaml
  moe-train run recipes/switch/tiny.yaml --workers 2 parallel.expert=2 steps=200
  moe-train run recipes/switch/tiny.yaml --resume 100               resume from the checkpoint of step 100
  moe-train run recipes/switch/tiny.yaml --resume never             start afresh; the old run is moved aside
  moe-train run recipes/switch/tiny.yaml --max-restarts 3           restart by itself when a worker fails

Ctrl-C or SIGTERM: all workers save at the same step and exit with code 75;
the same command resumes from there. Before the first step they exit at once.
"""
SHOW_EPILOG = """\
examples:
  moe-train show recipes/switch/tiny.yaml
  moe-train show recipes/switch/tiny.yaml --workers 4 parallel.expert=4
  moe-train show recipes/switch/tiny.yaml --json | jq .total_parameters
"""
# Command -> its function and its help. The function takes the arguments and, in ASK_ENVIRONMENT, the environment.
DELEGATED = {
    "plan": (
        "moe_train.planner.commands:main",
        "trace an update on any number of workers: FLOPs, bytes, memory",
    ),
    "submit": ("moe_train.jobs.submit:main", "submit a run to Slurm, Ray, or the background of this machine"),
    "status": ("moe_train.jobs.commands:status", "show the state of a run and of its job"),
    "logs": ("moe_train.jobs.commands:logs", "print the output of a run's job; -f follows it"),
    "cancel": ("moe_train.jobs.commands:cancel", "cancel a run's job"),
    "resume": ("moe_train.jobs.submit:resume", "submit a run again, to resume from its last checkpoint"),
    "fork": ("moe_train.fork:main", "make a new run from a checkpoint of another"),
    "list": ("moe_train.jobs.commands:list_runs", "list the runs in a folder"),
    "sweep": ("moe_train.jobs.sweep:main", "submit one recipe with several values of some keys"),
    "monitor": ("moe_train.monitor.commands:main", "report the expert load of a run, also as an HTML page"),
    "ckpt": ("moe_train.checkpoint.commands:main", "list, verify and clean up the checkpoints of a run"),
    "data": ("moe_train.data.commands:main", "build and describe corpora and tokenizers"),
    "translate": ("moe_train.translate:main", "translate with a run's checkpoint, and report BLEU and chrF"),
}
ASK_ENVIRONMENT = ("submit", "resume", "sweep")
ACTIONS = ("run", "submit", "resume", "sweep", "cancel")
"""Commands that continue when standard output is lost: it carries their messages, not their result."""
PRINTS = frozenset({"--dry-run", "--help", "-h"})
"""Options with which any command only prints something."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; print a MoETrainError or ClusterError as one message."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in filter(is_of_launcher, tuple(os.environ)):
        del os.environ[name]
    is_result = not arguments or arguments[0] not in ACTIONS or not PRINTS.isdisjoint(arguments)
    protect_output(is_result)
    try:
        return end_abandoned(_dispatched(arguments, is_result))
    except (MoETrainError, ClusterError) as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        print(f"moe-train: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("moe-train: interrupted; checkpoints written before are intact", file=sys.stderr)
        return end_abandoned(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: `moe-train show R | head`
        return INTERRUPTED


def _dispatched(arguments: list[str], is_result: bool) -> int:
    """Run one command, then check that its output was written."""
    try:
        exit_code = finish_output(_dispatch(arguments))
    except SystemExit:  # argparse has printed its help
        finish_output(0)
        raise
    if not is_result and arguments[0] != "run" and (failure := lost_output(sys.stdout)):
        print(f"moe-train: standard output could not be written ({failure.strerror})", file=sys.stderr)
    return exit_code


def _dispatch(arguments: list[str]) -> int:
    _require_text(arguments)
    if arguments and arguments[0] in DELEGATED:
        command, rest = arguments[0], arguments[1:]
        module, name = DELEGATED[command][0].split(":")
        function = getattr(importlib.import_module(module), name)
        if command == "data":
            return int(function(rest, os.environ.get(CACHE_VARIABLE)))
        return int(function(rest, os.environ) if command in ASK_ENVIRONMENT else function(rest))
    parser = _parser()
    if not arguments:
        parser.print_help()
        return UsageError.exit_code
    options = parse_with_overrides(parser, arguments)
    return _show(options) if options.command == "show" else _run(options)


def _require_text(arguments: Sequence[str]) -> None:
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError:  # bytes of another encoding, which Python keeps as surrogates
            raise UsageError(f"argument {word!a}: is not UTF-8 text; use another name or value") from None


def _run(options: argparse.Namespace) -> int:
    from moe_train.launch import Launch, launch

    request = Launch(
        recipe=options.recipe,
        overrides=tuple(options.overrides),
        workers=options.workers and options.workers[-1],
        min_workers=options.workers and options.workers[0],
        launcher=options.launcher,
        run_dir=options.run_dir,
        resume=options.resume,
        max_restarts=options.max_restarts,
        dry_run=options.dry_run,
    )
    return launch(request, os.environ)


def _show(options: argparse.Namespace) -> int:
    from moe_train.show import show

    return show(
        options.recipe,
        options.overrides,
        options.workers and options.workers[-1],
        options.json,
        options.workers_per_node,
    )


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser("moe-train", description=DESCRIPTION, epilog=EPILOG, formatter_class=plain)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="train or resume a run", epilog=RUN_EPILOG, formatter_class=plain)
    _add_recipe(run)
    run.add_argument("--run-dir", type=folder, metavar="DIR", help="folder of the run (default: runs/NAME)")
    run.add_argument(
        "--resume",
        type=resume_from,
        default="auto",
        metavar="auto|never|STEP",
        help="auto: resume from the newest valid checkpoint, if any (default); never: start afresh; "
        "STEP: resume from that step's checkpoint",
    )
    run.add_argument(
        "--max-restarts",
        type=count,
        default=0,
        metavar="N",
        help="after a failure, restart from the last checkpoint; give up after N restarts without a new "
        "checkpoint (default: 0)",
    )
    run.add_argument(
        "--launcher",
        default="local",
        metavar="NAME",
        help="where the workers run: local, on this host (default); slurm, in this command's allocation; "
        "ray, on the cluster at RAY_ADDRESS",
    )
    run.add_argument("--dry-run", action="store_true", help="print what would run; start and write nothing")

    show = commands.add_parser(
        "show",
        help="print the resolved recipe, its parameters, FLOPs and layout, and validation errors",
        epilog=SHOW_EPILOG,
        formatter_class=plain,
    )
    _add_recipe(show)
    show.add_argument(
        "--workers-per-node",
        type=positive,
        metavar="N",
        help="workers of a host, to say which groups stay within one",
    )
    show.add_argument("--json", action="store_true", help="print one JSON object")
    for name, (_, line) in DELEGATED.items():
        commands.add_parser(name, help=line, add_help=False)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a recipe that comes with moe-train")
    add_overrides(parser, "override a key of the recipe, e.g. optim.lr=1e-3")
    parser.add_argument(
        "--workers",
        type=count_or_range,
        metavar="N",
        help="number of processes (default: parallel.data of the recipe, or 1); MIN:MAX: as many as there is room for",
    )


class _Version(argparse.Action):
    """Looks up the installed version only for --version: importlib.metadata takes as long as everything else."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"moe-train {version('moe-train')}")
        except PackageNotFoundError:
            print("moe-train (not installed)")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
