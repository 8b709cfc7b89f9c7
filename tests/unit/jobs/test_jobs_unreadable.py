"""What is said of a run that is not for us to read, or whose files are damaged: one sentence, and never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require_tool
from small_run import Command

from moe_cluster.contract import attempt_dir
from moe_cluster.errors import ClusterError
from moe_cluster.tail import lines_of
from moe_cluster.watch import findings
from moe_train.config.schema import Recipe
from moe_train.jobs.standing import read_progress
from moe_train.run_folder import RunFolder

ROOT = Path(__file__).parents[3]
RECORD = {"cluster": "local", "id": "1", "time": 1.0, "user": "u", "host": "h", "resources": {"nodes": 1}}
EACH = """
import sys
from pathlib import Path
from moe_train import cli
run_dir = Path(sys.argv[1])
commands = [["status"], ["logs"], ["logs", "--rank", "0"], ["cancel"], ["resume", "--dry-run"], ["list"], ["monitor"]]
commands += [["run", sys.argv[2], "--run-dir"], ["submit", sys.argv[2], "--run-dir"]]  # of a finished run
commands += [["fork"]]
for name in sys.argv[3:]:
    path = run_dir / name
    mode = path.stat().st_mode
    path.chmod(0)
    for command in commands:
        print(f"# {' '.join(command)} {name}", file=sys.stderr)
        try:
            cli.main([*command, str(run_dir), *(["/proc/new"] if command == ["fork"] else [])])
        except Exception as error:
            print(f"Traceback: {command} {name} {error!r}", file=sys.stderr)
    path.chmod(mode)
"""
PRIVATE = (".", "recipe.yaml", "metrics.jsonl", "checkpoints", "attempts", "jobs", "jobs.jsonl")


def without_privileges() -> list[str]:
    """What a command begins with for which the modes of files hold, which they do not for root."""
    if os.geteuid() != 0:
        return []
    return [require_tool("setpriv", "util-linux"), "--bounding-set=-dac_override,-dac_read_search"]


def test_a_run_that_is_not_ours_to_read_is_one_sentence_whatever_of_it_is_closed(
    run_dir: Path, folder: Path
) -> None:
    (run_dir / "jobs").mkdir()
    (run_dir / "jobs.jsonl").write_text(json.dumps({**RECORD, "directives": []}) + "\n")
    paths = map(str, (ROOT, ROOT / "cluster", ROOT / "kernels"))
    done = subprocess.run(
        [
            *without_privileges(),
            sys.executable,
            "-c",
            EACH,
            str(run_dir),
            str(folder / "small.yaml"),
            *PRIVATE,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    said = dict(part.split("\n", 1) for part in done.stderr.split("# ")[1:])
    for name in (".", "recipe.yaml", "metrics.jsonl", "attempts", "jobs.jsonl"):
        assert said[f"status {name}"].startswith("moe-train: error: "), name
        assert "cannot be read (Permission denied)" in said[f"status {name}"]
        assert "cannot be read (Permission denied)" in said[f"list {name}"]
    assert "jobs/1.log: cannot be read (Permission denied)" in said["logs jobs"]


def test_a_name_that_no_folder_can_have_is_one_sentence(moe_train: Command) -> None:
    moe_train("status", "x" * 300).refuses("cannot be read (File name too long)", code=1)


def test_a_line_of_findings_that_was_torn_is_left_out(tmp_path: Path) -> None:
    straggler = findings.Straggler(rank=1, host="node2", where="layer.py:9", waiting=0.8, seconds=60.0)
    with RunFolder(tmp_path / "run") as folder:
        attempt = attempt_dir(folder.path, folder.new_attempt(Recipe()))
        findings.record(attempt, straggler)
        with (attempt / findings.FINDINGS_FILE).open("a") as file:
            file.write('{"kind": "hang", "time": 1')
        assert read_progress(folder.path, ask=False).said == str(straggler)
        assert findings.recorded_hang(attempt) is None


def test_a_log_that_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot be read \\(Is a directory\\)"):
        list(lines_of(tmp_path, lambda: True))
    assert list(lines_of(tmp_path / "not yet", lambda: True)) == []


def test_one_damaged_run_does_not_hide_the_others_from_a_list(moe_train: Command, run_dir: Path) -> None:
    damaged = run_dir.parent / "damaged"
    damaged.mkdir()
    (damaged / "jobs.jsonl").write_bytes(b"\xff\xfe{\n")
    ended = moe_train("list", str(run_dir.parent))
    assert (ended.code, "finished" in ended.output) == (0, True)
    assert f"{damaged / 'jobs.jsonl'}: line 1 is not a record of a job" in ended.errors
