"""Shows that a change of the code leaves every number as it was: losses, counts, parameters, resumes.

    python tools/same_numbers.py record OLD                # in a checkout from before
    python tools/same_numbers.py record NEW                # in one from after
    python tools/same_numbers.py compare OLD NEW
    python tools/same_numbers.py resume OLD                # from after: the old checkpoints train on to the old numbers

Each of RUNS trains a tiny recipe for a few updates with a checkpoint half-way. Rows of metrics.jsonl must be equal
but for times and memory, checkpoints bit for bit, tensor by tensor.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
STEPS, HALF = 8, 4
SHORT = (f"steps={STEPS}", "log_every=2", f"validate_every={HALF}", f"checkpoint.every={HALF}")
RUNS = {
    "switch": ("switch/tiny",),
    "switch-2": ("switch/tiny", "--workers", "2", "parallel.expert=2"),
    "switch-accumulated": ("switch/tiny", "data.micro_batch=8"),
    "base": ("base/tiny",),
    "deepseek": ("deepseek/tiny",),
    "dense_to_sparse": (
        "dense_to_sparse/tiny",
        "moe.router.diversify_steps=2",
        "moe.router.decay_steps=6",
        "moe.router.hard_step=6",
    ),
    "expert_choice-2": ("expert_choice/tiny", "--workers", "2"),
    "glam-adafactor": ("glam/tiny", "checkpoint.keep_last=0"),
    "hash": ("hash/tiny",),
    "reinforce": ("reinforce/tiny",),
    "smear": ("smear/tiny",),
    "soft": ("soft/tiny",),
    "thor-dropout": ("thor/tiny", "model.dropout=0.1"),
    "translation": ("thor/tiny-translation", "decoding.sentences=8"),
    "span": ("switch/tiny-span",),
}
"""Recipe and arguments of each run."""
CHANGING = ("tokens_per_second", "memory_bytes", "attempt", "time")
"""Fields of a row that no two runs share."""


def main() -> None:
    """Runs the command of the command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("record", "compare", "resume"))
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--only", nargs="+", default=list(RUNS), help="names of RUNS")
    options = parser.parse_args()
    differences: list[str] = []
    for name in options.only:
        folders = [folder / name for folder in options.folders]
        if options.command == "record":
            train(folders[0], *RUNS[name])
        elif options.command == "compare":
            differences += compare(folders[0], folders[1])
        else:
            differences += resume(folders[0], *RUNS[name])
        print(f"{options.command} {name}: {len(differences)} differences so far", flush=True)
    print("\n".join(differences))
    sys.exit(1 if differences else 0)


def train(folder: Path, recipe: str, *arguments: str) -> None:
    """Trains one recipe in a folder."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "moe_train.cli",
        "run",
        f"recipes/{recipe}.yaml",
        "--run-dir",
        str(folder),
    ]
    ended = subprocess.run([*command, *SHORT, *arguments], cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(f"{folder.name}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}")


def compare(before: Path, after: Path) -> list[str]:
    """Returns the differences between two folders of one run."""
    problems = []
    for old, new in zip(rows(before), rows(after), strict=True):
        if old != new:
            problems.append(f"{before.name}: row {old}\n  became {new}")
    for step in (HALF, STEPS):
        old_state, new_state = tensors(before, step), tensors(after, step)
        if old_state.keys() != new_state.keys():
            problems.append(
                f"{before.name}: step {step} has {sorted(old_state.keys() ^ new_state.keys())} once"
            )
        for name in old_state.keys() & new_state.keys():
            if old_state[name] != new_state[name]:
                problems.append(f"{before.name}: {name} differs at step {step}")
    return problems


def resume(folder: Path, recipe: str, *arguments: str) -> list[str]:
    """Returns how a run that goes on from the checkpoint of `folder` half-way differs from the one that wrote it."""
    copy = folder.with_name(f"{folder.name}-resumed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / f"checkpoints/step_{STEPS:08}")
    (copy / "finished.json").unlink()
    (copy / "checkpoints/latest").write_text(f"step_{HALF:08}\n")
    (copy / "metrics.jsonl").write_text("")
    train(copy, recipe, *arguments)
    expected = [row for row in rows(folder) if row["step"] > HALF]
    problems = [] if rows(copy) == expected else [f"{folder.name}: rows {rows(copy)}\n  were {expected}"]
    old_state, new_state = tensors(folder, STEPS), tensors(copy, STEPS)
    return problems + [
        f"{folder.name}: {name} differs" for name in old_state if old_state[name] != new_state[name]
    ]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Returns what a run measured, without what no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {key: repr(value) for key, value in line.items() if key not in CHANGING} | {"step": line["step"]}
        for line in lines
        if "event" not in line
    ]


def tensors(folder: Path, step: int) -> dict[str, tuple[Any, bytes]]:
    """Returns shape and bytes of every tensor of a checkpoint, by file and name."""
    files = sorted((folder / f"checkpoints/step_{step:08}").glob("*.safetensors"))
    if not files:
        sys.exit(f"{folder}: no checkpoint of step {step}, so there is nothing to compare")
    return {
        f"{file.name}:{name}": (tensor.shape, tensor.tobytes())
        for file in files
        for name, tensor in load_file(file).items()
    }


if __name__ == "__main__":
    main()
