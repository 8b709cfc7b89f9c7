"""Files that are replaced in one step, and what is never replaced."""

import os
import stat
from pathlib import Path

from moe_cluster.atomic import replace_text


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "file"
    for text in ("old", "new"):
        replace_text(path, text, durable=True)
        assert path.read_text() == text
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    replace_text(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "kept"


def test_a_device_is_written_into_and_stays_a_device():
    controller, terminal = os.openpty()  # a device that needs no right to make one
    path = Path(os.ttyname(terminal))
    replace_text(path, "text")
    assert os.read(controller, 16) == b"text"
    assert stat.S_ISCHR(path.stat().st_mode)
    os.close(terminal)
    os.close(controller)
