"""A small translation run from end to end: trained, scored, resumed, and used by `moe-train translate`."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from small_run import Command, contents, environment

from moe_kernels.select import choose
from moe_train import cli

WORDS = dict(zip("abcdefg", "tuvwxyz", strict=True))
RECIPE = """\
name: pairs
steps: 4
log_every: 2
validate_every: 0
model: {{architecture: encoder_decoder, num_layers: 2, d_model: 16, num_heads: 2, dropout: 0.1}}
moe:
  {{every: 2, num_experts: 2, capacity_factor: null, eval_capacity_factor: null, router: {{kind: thor}}}}
objective: {{kind: consistency}}
data:
  corpus: {{kind: parallel_files, path: {corpus}}}
  tokenizer: {{vocab_size: 270}}
  sequence_length: 10
  global_batch: 8
  validation_sequences: 8
decoding: {{beam_size: 2, sentences: 3}}
optim: {{lr: 1.0e-2, schedule: {{kind: constant}}}}
checkpoint: {{every: 2}}
job: {{threads: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a recipe and a folder of pairs: letters for letters."""
    path = tmp_path_factory.mktemp("pairs")
    corpus = path / "corpus"
    corpus.mkdir()
    draw = random.Random(0)
    for number in range(5):
        lines = [draw.choices(list(WORDS), k=draw.randint(3, 4)) for _ in range(12)]
        (corpus / f"{number}.en").write_text("\n".join(" ".join(words) for words in lines))
        (corpus / f"{number}.de").write_text(
            "\n".join(" ".join(WORDS[word] for word in words) for words in lines)
        )
    (path / "pairs.yaml").write_text(RECIPE.format(corpus=corpus))
    return path


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    """A run of four steps."""
    choose("cpu")  # with everybody's cache: in one of its own the run would compile the kernels first
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        assert cli.main(["run", str(folder / "pairs.yaml"), "--run-dir", str(folder / "run")]) == 0
    return folder / "run"


def rows(run_dir: Path, key: str) -> dict[int, dict]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in found if key in row}


def test_validation_rows_have_loss_bleu_and_chrf(finished):
    validation = rows(finished, "validation_loss")
    assert list(validation) == [0, 4]
    assert validation[4]["validation_loss"] < validation[0]["validation_loss"]
    for row in validation.values():
        assert 0 <= row["bleu"] <= 100
        assert 0 <= row["chrf"] <= 100
    assert all(row["losses"]["consistency"] > 0 for row in rows(finished, "losses").values())


def test_a_run_resumed_in_the_middle_ends_bitwise_the_same(finished, moe_train: Command, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "again")
    assert moe_train("run", "pairs.yaml", "--run-dir", str(run_dir), "--resume", "2").code == 0
    first, again = rows(finished, "validation_loss")[4], rows(run_dir, "validation_loss")[4]
    assert again["attempt"] == 2
    assert {**again, "attempt": 1} == first

    def weights(path: Path) -> list[str]:
        files = contents(next((path / "checkpoints").glob("*4")))
        return [digest for name, digest in files.items() if name.endswith(".safetensors")]

    assert weights(run_dir) == weights(finished)


@pytest.mark.parametrize(
    "router",
    [
        ("base",),
        ("sinkhorn",),
        ("noisy_top_k", "moe.router.k=2", "moe.num_experts=4"),
        ("expert_choice", "moe.stacks=encoder"),
    ],
    ids=lambda router: router[0],
)
def test_sentences_are_learned_with_other_routers_too(folder, moe_train: Command, tmp_path, router):
    kind, *overrides = router
    changed = ("objective.kind=translation", f"moe.router.kind={kind}", *overrides)
    ended = moe_train("run", "pairs.yaml", "--run-dir", str(tmp_path / "run"), *changed)
    assert ended.code == 0, ended.errors
    validation = rows(tmp_path / "run", "validation_loss")
    assert validation[4]["validation_loss"] < validation[0]["validation_loss"]


def test_pairs_that_are_too_long_for_training_are_counted_at_the_start(moe_train: Command, tmp_path):
    shorter = ("data.sequence_length=4", "steps=1", "data.validation_sequences=1", "decoding.sentences=0")
    ended = moe_train("run", "pairs.yaml", "--run-dir", str(tmp_path / "run"), *shorter)
    assert ended.code == 0, ended.errors
    longer = re.search(r"a side of more than data.sequence_length=4 tokens \((\d+) of 48\)", ended.errors)
    assert longer is not None
    assert 0 < int(longer[1]) < 48


def test_translate_shows_validation_pairs_and_their_scores(finished, moe_train: Command):
    ended = moe_train("translate", str(finished), "decoding.beam_size=1")
    assert ended.code == 0, ended.errors
    assert ended.output.count("source       ") == ended.output.count("reference    ") == 3
    last = ended.output.splitlines()[-1]
    assert last.startswith("step 4, 3 pairs: BLEU ")
    assert last.endswith("(beam 1, length penalty 0.6)")
    same = moe_train("translate", str(finished)).output.splitlines()[-1]
    scores = rows(finished, "validation_loss")[4]
    assert f"BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f} (beam 2" in same


def test_translate_writes_a_line_for_every_line_of_a_file(finished, moe_train: Command, tmp_path):
    (tmp_path / "text").write_bytes("\ufeffa\u2028b\r\n\ng\ff e".encode())
    ended = moe_train(
        "translate",
        str(finished),
        "--step",
        "2",
        "--file",
        str(tmp_path / "text"),
        "moe.router.inference=ensemble",
    )
    assert ended.code == 0, ended.errors
    assert ended.output.count("\n") == 3


def test_what_cannot_be_translated_is_said_in_one_message(finished, moe_train: Command, tmp_path):
    moe_train("translate", "nowhere").refuses("RUN=nowhere", "there is no run folder")
    moe_train("translate", str(finished), "--file", "missing").refuses("--file missing", "name another file")
    moe_train("translate", str(finished), "--step", "3").refuses(
        "does not exist; choose one of [2, 4]", code=1
    )
    (tmp_path / "long").write_text("a " * 20)
    moe_train("translate", str(finished), "--file", str(tmp_path / "long")).refuses(
        "line 1 has", "data.sequence_length=10"
    )
    moe_train("translate", str(finished), "decoding.beam_size=0").refuses("decoding.beam_size=0")


@pytest.mark.distributed_exhaustive
def test_two_workers_that_share_the_experts_train_validate_and_translate_like_one(
    moe_train: Command, tmp_path
):
    plain = (
        "optim.kind=sgd",
        "optim.lr=0.3",
        "optim.schedule.kind=constant",
        "decoding.sentences=4",
        "log_every=1",
    )
    for workers in ("1", "2"):
        layout = ("--run-dir", str(tmp_path / workers), "--workers", workers, f"parallel.expert={workers}")
        assert moe_train("run", "pairs.yaml", *layout, *plain).code == 0
    for key in ("loss", "grad_norm", "validation_loss", "bleu", "chrf"):
        alone, shared = (
            {step: row[key] for step, row in rows(tmp_path / workers, key).items()} for workers in ("1", "2")
        )
        assert shared == pytest.approx(alone, rel=1e-5), key
