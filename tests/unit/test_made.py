"""What a refused command made goes again, and nothing else does."""

from pathlib import Path

from small_run import tree

from moe_train.made import Made


def test_files_and_folders_that_were_not_there_go_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/kept").write_text("x")
    before, made = tree(tmp_path), Made()
    for name in ("there/kept", "there/new", "a/b/c/lock", "a/b/other", "never made"):
        made.expect(tmp_path / name)
    (tmp_path / "a/b/c").mkdir(parents=True)
    for name in ("there/kept", "there/new", "a/b/c/lock", "a/b/other"):
        (tmp_path / name).write_text("x")
    made.take_back()
    assert tree(tmp_path) == before


def test_a_folder_in_which_somebody_else_has_put_something_stays(tmp_path: Path) -> None:
    made = Made()
    made.expect(tmp_path / "run/jobs/lock")
    (tmp_path / "run/jobs").mkdir(parents=True)
    (tmp_path / "run/jobs/lock").write_text("")
    (tmp_path / "run/of another").write_text("x")
    made.take_back()
    assert list(tree(tmp_path)) == ["run", "run/of another"]


def test_a_link_that_leads_nowhere_is_not_taken_for_missing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    made = Made()
    made.expect(tmp_path / "link")
    made.take_back()
    assert (tmp_path / "link").is_symlink()
