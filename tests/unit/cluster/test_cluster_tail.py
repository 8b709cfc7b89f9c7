"""Lines of a job's output as a file or a program should have them."""

import pytest

from moe_cluster.tail import plain


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("\x1b[36m(RayTrainWorker pid=133, ip=10.78.0.12)\x1b[0m step 4  loss 1.2", "step 4  loss 1.2"),
        ("\x1b[36m(TrainController pid=550)\x1b[0m   - two blanks stay", "  - two blanks stay"),
        ("(pid=7) said by an actor without a name", "said by an actor without a name"),
        ("\x1b[33m(raylet, ip=10.0.0.2)\x1b[0m A worker died", "A worker died"),
        ("dashboard: \x1b[1m\x1b[32mhttp://head:8265 \x1b[39m\x1b[22m", "dashboard: http://head:8265 "),
        ("\x1b[?25h", ""),
        ("(see docs) pid=3) is text of ours", "(see docs) pid=3) is text of ours"),
        ("loss (pid=3) stays inside of a line", "loss (pid=3) stays inside of a line"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_line_for_a_file_is_without_colours_and_processes(line: str, expected: str) -> None:
    assert plain(line) == expected
