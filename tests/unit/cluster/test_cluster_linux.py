"""Parent-death signals and adopted orphans, on real processes."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_cluster.linux import catches, children, free_port, is_alive

CLUSTER = str(Path(__file__).parents[3] / "cluster")
HEADER = f"import os, subprocess, sys; sys.path.insert(0, {CLUSTER!r}); from moe_cluster.linux import *\n"


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", HEADER + code], capture_output=True, text=True, timeout=30)


def test_a_grandchild_is_adopted_and_ended_but_a_stranger_is_kept() -> None:
    done = python(
        "adopt_orphans()\n"
        "stranger = subprocess.Popen(['sleep', '60'])\n"
        "keep = children(os.getpid())\n"
        "grandchild = int(subprocess.check_output(['sh', '-c', 'setsid sleep 60 >/dev/null & echo $!']))\n"
        "assert grandchild in children(os.getpid())\n"
        "end_children(keep, patience_s=0)\n"
        "print(is_alive(grandchild), is_alive(stranger.pid))\n"
        "stranger.kill(); stranger.wait()\n"
    )
    assert done.stdout == "False True\n", done.stderr


def test_a_child_that_ends_in_time_is_not_killed(tmp_path: Path) -> None:
    mark = tmp_path / "done"
    done = python(
        f"subprocess.Popen(['sh', '-c', 'sleep 0.3; touch {mark}']); end_children(set(), patience_s=10)"
    )
    assert done.returncode == 0, done.stderr
    assert mark.exists()


def test_a_process_dies_with_its_parent() -> None:
    child = f"{HEADER}import time; die_with_parent(os.getppid()); print('ready', flush=True); time.sleep(60)"
    done = python(
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); os._exit(0)\n"
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 5
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_hang_up_is_ignored_under_nohup() -> None:
    code = "print([number.name for number in stop_signals()])"
    plain = (
        f"signal.signal(signal.SIGHUP, signal.SIG_DFL); {code}"  # the tests themselves may run under nohup
    )
    assert python(plain).stdout == "['SIGINT', 'SIGTERM', 'SIGHUP']\n"
    nohup = f"signal.signal(signal.SIGHUP, signal.SIG_IGN); {code}"
    assert python(nohup).stdout == "['SIGINT', 'SIGTERM']\n"


def test_a_signal_that_a_process_has_a_handler_for_is_told_from_others() -> None:
    code = "import signal; signal.signal(signal.SIGUSR1, print); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert catches(process.pid, signal.SIGUSR1)
        assert not catches(process.pid, signal.SIGTERM)
        process.communicate(b"\n")
    assert not catches(process.pid, signal.SIGUSR1)


def test_a_process_whose_name_is_no_text_is_a_process_like_others(tmp_path):
    """Linux cuts names off after 15 bytes, in the middle of a letter if it so happens."""
    program = os.path.join(os.fsencode(tmp_path), b"name-\xff")
    os.symlink(shutil.which("sleep") or "", program)
    process = subprocess.Popen([program, "60"])
    try:
        while b"\xff" not in Path(f"/proc/{process.pid}/comm").read_bytes():
            time.sleep(0.01)  # not yet the program
        assert process.pid in children(os.getpid())
        assert is_alive(process.pid)
        assert not catches(process.pid, signal.SIGTERM)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_free_port_can_be_listened_at(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError:
        pytest.skip(f"this host has no {address}")
    with socket.create_server((address, free_port(address)), family=family) as listener:
        assert listener.getsockname()[0] == address
