"""A run whose experts are for clusters of tokens, from text to table: made of the text, and kept by a resume."""

import random
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_run import RECIPE, Command, contents

from moe_train.config.kinds.data import BPEConfig
from moe_train.data.tokenizer import BPETokenizer

LANGUAGES = ("abcdef", "uvwxyz")
CLUSTERED = ("moe.num_experts=2", "moe.router.kind=hash", "moe.router.table=clustered", "steps=4")


@pytest.fixture
def two_languages(tmp_path: Path) -> Path:
    """A recipe for documents of two languages without a letter in common."""
    draw, corpus = random.Random(0), tmp_path / "corpus"
    corpus.mkdir()
    for number in range(8):
        letters = LANGUAGES[number % 2]
        words = ["".join(draw.choices(letters, k=draw.randint(2, 6))) for _ in range(600)]
        (corpus / f"{number}.txt").write_text(" ".join(words))
    recipe = tmp_path / "languages.yaml"
    recipe.write_text(RECIPE.format(corpus=corpus))
    return recipe


def table_of(run_dir: Path, step: int) -> list[int]:
    """The table in the checkpoint of `step`."""
    (folder,) = (run_dir / "checkpoints").glob(f"*{step}")
    for file in folder.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if "router.table" in name:
                return tensor.tolist()
    raise AssertionError(f"no table in {folder}")


def test_each_language_has_an_expert_and_a_resumed_run_is_the_same(two_languages, moe_train: Command):
    run_dir, again = two_languages.parent / "run", two_languages.parent / "again"
    ended = moe_train("run", str(two_languages), "--run-dir", str(run_dir), *CLUSTERED)
    assert ended.code == 0, ended.errors
    table, tokenizer = table_of(run_dir, 4), BPETokenizer(BPEConfig(vocab_size=300))
    tokenizer.load(run_dir / "tokenizer.json")
    texts = [tokenizer.decode([token]).strip() for token in range(300)]
    experts = [
        {table[token] for token, text in enumerate(texts) if len(text) > 1 and set(text) <= set(language)}
        for language in LANGUAGES
    ]
    assert sorted(experts, key=min) == [{0}, {1}], "tokens of several letters are all in the text"

    shutil.copytree(run_dir, again)
    resumed = moe_train("run", str(two_languages), "--run-dir", str(again), "--resume", "2", *CLUSTERED)
    assert resumed.code == 0, resumed.errors
    assert table_of(again, 4) == table

    def tensors(path: Path) -> list[str]:
        files = contents(next((path / "checkpoints").glob("*4")))
        return [digest for name, digest in files.items() if name.endswith(".safetensors")]

    assert tensors(again) == tensors(run_dir)
