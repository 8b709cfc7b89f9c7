"""Everything bad that a user can bring: one message with key, value, rule and way out, or a stated fallback.

Each case goes through the command line, from outside. What can be wrong with checkpoints is in
test_bad_checkpoints.py; what needs a mount, a kill or a network is in tests/faults/test_bad_input_running.py.
"""

import json
import shlex
from pathlib import Path

import pytest
from small_run import Command, contents, tree

from moe_train.run_folder import RunFolder

TOP_K = "moe.router.kind=top_k"

# What is wrong, the words after `moe-train run`, and the parts of the message: key and value, rule, way out.
BEFORE_ANYTHING_STARTS = [
    (
        "unknown key",
        ["small.yaml", "model.d_modle=8"],
        ["model.d_modle: ", "no such key", "did you mean model.d_model?"],
    ),
    ("wrong type", ["small.yaml", "steps=abc"], ["steps=abc: ", "must be a whole number"]),
    ("missing recipe", ["gone.yaml"], ["recipe=gone.yaml: ", "there is no such file", "recipes/"]),
    ("recipe is binary", ["binary.yaml"], ["recipe=binary.yaml: ", "is not valid YAML"]),
    ("recipe is a list", ["list.yaml"], ["recipe=list.yaml: ", "must be a mapping"]),
    ("recipe is a folder", ["folder.yaml"], ["recipe=folder.yaml: "]),
    (
        "experts not divisible by the expert degree",
        ["small.yaml", "--workers", "8", "parallel.expert=8"],
        ["parallel.expert=8: ", "must divide moe.num_experts=4", "choose one of 1, 2, 4"],
    ),
    (
        "workers not divisible by the expert degree",
        ["small.yaml", "--workers", "3", "parallel.expert=2"],
        ["parallel.expert=2: ", "the number of workers, which is 3", "choose one of 1, 3"],
    ),
    (
        "world size that is not the recipe's",
        ["small.yaml", "--workers", "2", "parallel.data=4"],
        ["parallel.data=4: ", "the number of workers, which is 2", "run with --workers 4"],
    ),
    (
        "world size that does not divide the batch",
        ["small.yaml", "--workers", "4", "data.global_batch=6"],
        ["data.global_batch=6: ", "a multiple of the 4 data-parallel workers", "use 4 or 8"],
    ),
    (
        "vocabulary smaller than the bytes",
        ["small.yaml", "data.tokenizer.vocab_size=100"],
        ["data.tokenizer.vocab_size=100: ", "at least 258 for the 256 bytes"],
    ),
    (
        "capacity factor of 0",
        ["small.yaml", "moe.capacity_factor=0"],
        ["moe.capacity_factor=0.0: ", "must be above 0", "positive number or to null"],
    ),
    ("capacity factor below 0", ["small.yaml", "moe.capacity_factor=-1"], ["moe.capacity_factor=-1.0: "]),
    (
        "top-k above the experts",
        ["small.yaml", TOP_K, "moe.router.k=5"],
        ["moe.router.k=5: ", "between 1 and moe.num_experts=4", "to at most 4"],
    ),
    ("top-k of 0", ["small.yaml", TOP_K, "moe.router.k=0"], ["moe.router.k=0: ", "between 1 and"]),
    ("no experts", ["small.yaml", "moe.num_experts=0"], ["moe.num_experts=0: ", "must be at least 1"]),
    ("no steps", ["small.yaml", "steps=-1"], ["steps=-1: ", "must be at least 1"]),
    ("expert degree of 0", ["small.yaml", "parallel.expert=0"], ["parallel.expert=0: ", "at least 1"]),
    ("value for a section", ["small.yaml", "moe.router=switch"], ["moe.router=switch: ", "moe.router.kind"]),
    ("unknown kind", ["small.yaml", "data.corpus.kind=nope"], ["data.corpus.kind=nope: ", "files, debian"]),
    ("not a number", ["small.yaml", "optim.lr=nan"], ["optim.lr=nan: ", "must be a finite number", "0.001"]),
    ("infinite", ["small.yaml", "moe.capacity_factor=inf"], ["moe.capacity_factor=inf: ", "finite"]),
    ("beta of 1", ["small.yaml", "optim.beta2=1"], ["optim.beta2=1.0: ", "must be in [0, 1)", "use 0.9"]),
    (
        "epsilon of 0",
        ["small.yaml", "optim.epsilon=0"],
        ["optim.epsilon=0.0: ", "must be above 0", "use 1e-8"],
    ),
    (
        "momentum of 1",
        ["small.yaml", "optim.kind=sgd", "optim.momentum=1"],
        ["optim.momentum=1.0: ", "must be in [0, 1)"],
    ),
    ("weight decay below 0", ["small.yaml", "optim.weight_decay=-1"], ["optim.weight_decay=-1.0: "]),
    ("too many threads", ["small.yaml", "job.threads=100000"], ["job.threads=100000: ", "at most 1024"]),
    ("name of two folders", ["small.yaml", "name=a/b"], ["name='a/b': ", "must be a valid folder name"]),
    ("name above this folder", ["small.yaml", "name=.."], ["name='..': ", "letters, digits and dashes"]),
    ("name too long", ["small.yaml", "name=" + "x" * 300], ["must be a valid folder name"]),
    ("name of control characters", ["small.yaml", r'name="a\nb"'], [r"name='a\nb': "]),
    (
        "odd microbatch of a huge batch",
        ["small.yaml", "data.global_batch=1000000000000", "data.micro_batch=7"],
        ["data.micro_batch=7: ", "must divide a worker's share", "40, 50 or a larger one"],
    ),
    ("bytes that are no text", ["small.yaml", "name=\udcff"], [r"argument 'name=\udcff': is not UTF-8 text"]),
    ("no workers", ["small.yaml", "--workers", "0"], ["--workers: 0 is not a whole number of at least 1"]),
    ("workers below 0", ["small.yaml", "--workers", "-1"], ["--workers: -1 is not a whole number"]),
    ("workers in words", ["small.yaml", "--workers", "x"], ["--workers: x is not a whole number"]),
    ("workers in superscript", ["small.yaml", "--workers", "²"], ["--workers: ² is not a whole number"]),
    (
        "restarts below 0",
        ["small.yaml", "--max-restarts", "-1"],
        ["--max-restarts: -1 is not a whole number"],
    ),
    ("resume in words", ["small.yaml", "--resume", "x"], ["--resume: x is neither auto, never, nor"]),
    ("empty run folder", ["small.yaml", "--run-dir", ""], ["--run-dir: must not be empty", "runs/NAME"]),
    (
        "resume of what never ran",
        ["small.yaml", "--resume", "7"],
        ["--resume 7: ", "runs/small has no run to resume", "use --resume auto"],
    ),
]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [case[1:] for case in BEFORE_ANYTHING_STARTS],
    ids=[case[0] for case in BEFORE_ANYTHING_STARTS],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    moe_train: Command, folder: Path, arguments: list[str], parts: list[str]
) -> None:
    before = tree(folder)
    moe_train("run", *arguments).refuses(*parts)
    assert tree(folder) == before


# What is wrong with the text or the machine, the overrides, and the parts of the message.
BEFORE_THE_FIRST_STEP = [
    (
        "empty corpus",
        ["data.corpus.path=nothing"],
        ["data.corpus.path=nothing: ", "holds no text (0 files match", "name a folder with UTF-8 text files"],
    ),
    (
        "missing corpus",
        ["data.corpus.path=gone"],
        ["data.corpus.path=gone: ", "no such file or folder", "correct the path"],
    ),
    (
        "name of the corpus too long",
        ["data.corpus.path=" + "x" * 300],
        ["x: cannot be read (File name too long); correct the path"],
    ),
    (
        "corpus of bytes",
        ["data.corpus.path=bytes"],
        [
            "files that are not UTF-8 (1; the first is bytes/a.txt)",
            "data.corpus.path=bytes: ",
            "holds no text",
        ],
    ),
    (
        "corpus of one file",
        ["data.corpus.path=alone"],
        ["one document (a.txt) cannot be split", "at least two files"],
    ),
    (
        "unreadable file",
        ["data.corpus.path=/proc/self/mem"],  # which root cannot read either
        ["/proc/self/mem cannot be read (Input/output error)", "correct its permissions"],
    ),
    (
        "corpus smaller than one batch",
        ["data.global_batch=10000"],
        ["data.global_batch=10000: ", "sequences of data.sequence_length=16", "use a smaller batch"],
    ),
    (
        "corpus shorter than one sequence",
        ["data.sequence_length=1000000"],
        ["make only 0 sequences of data.sequence_length=1000000", "shorter sequences"],
    ),
    (
        "vocabulary larger than the text fills",
        ["data.tokenizer.vocab_size=5000"],
        ["data.tokenizer.vocab_size=5000: ", "repeat too little", "or use more text"],
    ),
    pytest.param(
        "GPU where there is none",
        ["job.device=cuda"],
        ["job.device=cuda: ", "torch sees 0", "set job.device=cpu"],
        marks=pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU"),
    ),
]


@pytest.mark.parametrize(("what", "overrides", "parts"), BEFORE_THE_FIRST_STEP)
def test_what_is_found_when_the_data_is_read_is_said_by_its_rank(
    moe_train: Command, tmp_path: Path, what: str, overrides: list[str], parts: list[str]
) -> None:
    ended = moe_train("run", "small.yaml", "--run-dir", str(tmp_path / "run"), *overrides)
    ended.refuses(*parts, "reported by rank 0 on", "before the first step")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_loss_that_is_not_finite_ends_a_run(moe_train: Command, tmp_path: Path, optimizer: str) -> None:
    ended = moe_train(
        "run",
        "small.yaml",
        "--run-dir",
        str(tmp_path),
        f"optim.kind={optimizer}",
        "optim.lr=1e30",
        "optim.clip=null",
    )
    ended.refuses("grad_norm=nan at step 2", "the update was not made", "lower optim.lr=1e+30", code=1)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["step"]) == ("not_finite", 1)


def test_a_loss_that_is_not_finite_costs_nothing_that_was_saved(moe_train: Command, run_dir: Path) -> None:
    before = contents(run_dir / "checkpoints")
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=20", "optim.lr=1e30")
    ended.refuses("grad_norm=nan at step 8", "resume from an earlier checkpoint with --resume STEP", code=1)
    assert contents(run_dir / "checkpoints") == before
    assert moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8").code == 0


def test_a_run_that_explodes_leaves_updates_out_until_its_limit(moe_train: Command, tmp_path: Path) -> None:
    overrides = (
        "optim.lr=1e30",
        "optim.clip=null",
        "stability.skip_non_finite=true",
        "stability.skip_limit=3",
    )
    ended = moe_train("run", "small.yaml", "--run-dir", str(tmp_path), *overrides)
    ended.refuses(
        "step 4: 3 updates in a row were not finite",
        "(stability.rollback=false)",
        "lower optim.lr=1e+30",
        code=1,
    )
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [(row["step"], row["skipped_updates"]) for row in rows if row.get("event") == "skipped"]
    assert skipped == [(2, 1), (3, 2), (4, 3)]
    assert rows[-1]["event"] == "unstable"


# --- The run folder and the cache ---------------------------------------------------------------------------


def test_a_folder_in_which_a_run_is_going_on_is_refused(moe_train: Command, run_dir: Path) -> None:
    with RunFolder(run_dir):
        ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8")
    ended.refuses(f"run_dir={run_dir}: another moe-train is running in it", "wait for it to end", code=1)


@pytest.mark.parametrize(
    ("obstacle", "message"),
    [
        ("", "is a file, not a folder; choose another --run-dir"),
        ("attempts", "cannot be written (File exists: "),
        ("checkpoints", "checkpoints: cannot be listed (Not a directory); check its permissions"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_named(
    moe_train: Command, tmp_path: Path, obstacle: str, message: str
) -> None:
    path = tmp_path / "run" / obstacle
    path.parent.mkdir(exist_ok=True)
    path.write_text("in the way")
    moe_train("run", "small.yaml", "--run-dir", str(tmp_path / "run")).refuses(message, code=1)
    assert path.read_text() == "in the way"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("run_dir", ["run", "small.yaml", "--run-dir", "{inside}"]),
        ("run_dir", ["submit", "small.yaml", "--run-dir", "{inside}"]),
        ("NEW", ["fork", "{run}", "{inside}"]),
    ],
)
def test_a_run_folder_inside_of_a_file_is_refused(
    moe_train: Command, run_dir: Path, tmp_path: Path, key: str, words: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    inside = tmp_path / "file" / "runs" / "new"
    ended = moe_train(*(word.format(run=run_dir, inside=inside) for word in words))
    ended.refuses(f"{key}={inside}: {tmp_path / 'file'} is a file, not a folder; choose", code=1)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "metrics.jsonl",
            "metrics.jsonl: cannot be written (Is a directory), and a run must not continue without its record",
        ),
        ("recipe.yaml", "its recipe cannot be read ("),
        ("finished.json", "finished.json cannot be read ("),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_named(
    moe_train: Command, run_dir: Path, file: str, message: str
) -> None:
    before = contents(run_dir / "checkpoints")
    (run_dir / file).unlink()
    (run_dir / file).mkdir()
    moe_train("run", "small.yaml", "--run-dir", str(run_dir), "steps=8").refuses(message, code=1)
    assert contents(run_dir / "checkpoints") == before


def test_a_damaged_note_of_the_end_comes_with_the_way_out(moe_train: Command, run_dir: Path) -> None:
    (run_dir / "finished.json").write_text("{")
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir))
    ended.refuses("finished.json cannot be read (", "remove that file", code=1)


@pytest.mark.parametrize("place", ["/proc/nowhere", "small.yaml"])
def test_a_cache_that_cannot_be_written_is_named(
    moe_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("MOE_TRAIN_CACHE", place)
    ended = moe_train("run", "small.yaml", "--run-dir", str(tmp_path))
    ended.refuses("MOE_TRAIN_CACHE: the cache entry ", place, "to a writable folder with free space")


def test_a_damaged_tokenizer_in_the_cache_is_built_again(
    moe_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_TRAIN_CACHE", str(tmp_path / "cache"))
    assert moe_train("run", "small.yaml", "--run-dir", str(tmp_path / "first"), "steps=1").code == 0
    [tokenizer] = (tmp_path / "cache/tokens").glob("*/tokenizer.json")
    good = tokenizer.read_text()
    tokenizer.write_text(good[:100])
    ended = moe_train("run", "small.yaml", "--run-dir", str(tmp_path / "second"), "steps=1")
    assert ended.code == 0
    assert "is damaged (tokenizer.json differs from what was written: 100 bytes" in ended.errors
    assert "rebuilding it" in ended.errors
    assert tokenizer.read_text() == (tmp_path / "second/tokenizer.json").read_text() == good


def test_names_and_folders_with_spaces_quotes_and_umlauts_serve(moe_train: Command, tmp_path: Path) -> None:
    run_dir = tmp_path / "a 'b' ü"
    ended = moe_train("run", "small.yaml", "--run-dir", str(run_dir), "name=it's ü", "steps=2")
    assert ended.code == 0
    assert (
        "moe-train:" not in ended.errors
    )  # what was learned from the text may be in it, where no cache had it
    again = shlex.split(ended.output.splitlines()[-1].partition("train on:")[2])
    assert again[:2] == ["moe-train", "run"]
    assert moe_train(*again[1:]).code == 0
    assert moe_train("ckpt", "verify", str(run_dir)).code == 0
