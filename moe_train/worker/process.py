"""Manages the process of one worker: its log, its error file, stop requests, and its end with its launcher.

`worker.main` enters a Process before anything slow or fallible, so that every failure of a worker leaves an error.json,
and a signal during start-up is recorded instead of killing it. The folders and files are those of
`moe_cluster.contract`. Imports no torch, so entering takes milliseconds. Read `heartbeat.py` next.
"""

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, NoReturn

from moe_cluster.atomic import replace_text
from moe_cluster.contract import (
    ATTEMPT_VARIABLE,
    DONE,
    ERROR_FILE,
    FAILED,
    LAUNCHER_VARIABLE,
    LAYOUT_FILE,
    LOG_FILE,
    PREEMPTED,
    rank_dir,
    requested_stop,
)
from moe_cluster.linux import die_with_parent, stop_signals
from moe_cluster.output import output_stream
from moe_train.errors import MoETrainError, RunError, TrainingError
from moe_train.worker.heartbeat import Heartbeat
from moe_train.worker.progress import Progress

logger = logging.getLogger(__name__)

SAVING = b"\nmoe-train: stopping: saving at the next step, if training has begun (Ctrl-C again ends at once, unsaved)\n"
NOTHING_TO_SAVE = b"\nmoe-train: stopping: there is nothing to save before the first step\n"
FAREWELL_S = 2.0
"""A worker that is stopped before the first step waits this long before it exits. The others get the stop request
meanwhile; without it they would take its exit for a failure."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Process:
    """Runs one worker of one attempt, as a context manager.

    An exception that leaves the block is written to error.json and log.txt, and becomes a SystemExit with the exit code
    of the contract: no traceback reaches the terminal. KeyboardInterrupt passes unchanged. So does a MoETrainError if
    error.json cannot be written and there is no launcher: the caller has to report it.
    """

    def __init__(self, run_dir: Path, attempt: int, rank: int, launcher: int | None = None) -> None:
        """`launcher`: process id of the launcher to die with; None if a person started this process."""
        self.run_dir, self.attempt, self.rank = run_dir, attempt, rank
        self.folder = rank_dir(run_dir, attempt, rank)
        self.progress = Progress()
        self._heartbeat = Heartbeat(run_dir, attempt, rank, self.progress, self._end_at_once, self._wake)
        self._launcher = launcher
        self._ends_at_stop = False
        self._log: IO[str]
        self._handlers: list[logging.Handler] = []
        self._signals_before: dict[int, Any] = {}

    @classmethod
    def of_worker(cls, run_dir: Path, environment: Mapping[str, str]) -> "Process":
        """Returns the worker that `environment` describes, which torch elastic and the launcher set."""
        launcher = environment.get(LAUNCHER_VARIABLE)
        return cls(
            run_dir,
            attempt=int(environment.get(ATTEMPT_VARIABLE, "1")),
            rank=int(environment.get("RANK", "0")),
            launcher=int(launcher) if launcher else None,
        )

    @property
    def stop_requested(self) -> bool:
        """Returns whether this worker has a stop request; all workers must agree on a step before any of them stops."""
        return self._heartbeat.stop_reason is not None

    def __enter__(self) -> "Process":
        if self._launcher is not None:
            die_with_parent(self._launcher)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._log = (self.folder / LOG_FILE).open(
                "a", buffering=1, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise RunError.unwritable(self.run_dir, error) from None
        if self._launcher is not None:
            self._send_output_to_log()
        self._start_logging()
        faulthandler.enable(self._log)
        for number in (*stop_signals(), signal.SIGUSR1):
            self._signals_before[number] = signal.signal(number, self._receive)
        self._heartbeat.start()
        facts = self._heartbeat.facts()
        logger.debug(
            "rank %d of attempt %d is process %d on %s", self.rank, self.attempt, facts["pid"], facts["host"]
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exit_code = None if error is None else _exit_code(error)
        unrecorded = None
        if error is not None and exit_code == FAILED and self._was_stopped_before_training():
            logger.debug("stopped before the first step: %s: %s", type(error).__name__, error)
            exit_code = PREEMPTED  # the others were stopped too, and their exit caused this error
        if error is not None and exit_code not in (None, DONE, PREEMPTED):
            unrecorded = self._record(self._explained(error), exit_code or FAILED)
        self._heartbeat.end()
        self._restore()
        if unrecorded is not None:
            raise unrecorded from None
        if error is not None and exit_code is not None:
            raise SystemExit(exit_code) from None

    @contextmanager
    def ending_at_stop(self) -> Iterator[None]:
        """Runs a block before the first step, where there is nothing to save: a stop request ends it at once.

        Raises SystemExit with PREEMPTED, wherever the main thread is in Python.
        """
        self._ends_at_stop = True
        try:
            if self.stop_requested:
                self._stop_now()
            yield
        finally:
            self._ends_at_stop = False

    def beat(self, step: int) -> None:
        """Report that `step` is done."""
        self.progress.made(step)

    def beat_part(self) -> None:
        """Report that a part of the phase is done."""
        self.progress.made_part()

    def during(self, phase: str) -> AbstractContextManager[None]:
        """Runs a block outside training: one of the phases of `progress.py`."""
        return self.progress.during(phase)

    def write_layout(self, layout: Mapping[str, Any]) -> None:
        """Write layout.json: this rank's coordinates and the local shape of every parameter."""
        replace_text(self.folder / LAYOUT_FILE, json.dumps(layout, indent=1) + "\n")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.stop_requested and self._launcher is None:
            note = NOTHING_TO_SAVE if self._ends_at_stop else SAVING
            with suppress(OSError):  # a terminal that is gone, a full disk
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, note)
        name = signal.Signals(number).name
        self._heartbeat.ask_to_stop(f"{name}: the time limit is near" if number == signal.SIGUSR1 else name)
        if self._ends_at_stop:
            self._stop_now()

    def _stop_now(self) -> NoReturn:
        self._ends_at_stop = False  # a repeated signal must not interrupt the cleanup
        if self._launcher is not None:
            time.sleep(FAREWELL_S)
        raise SystemExit(PREEMPTED)

    def _wake(self) -> None:
        """Interrupt the main thread; the heartbeat's thread calls this when it reads a stop request."""
        if self._ends_at_stop:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _was_stopped_before_training(self) -> bool:
        has_begun = self.progress.step is not None
        return not has_begun and (
            self.stop_requested or requested_stop(self.run_dir, self.attempt) is not None
        )

    def _end_at_once(self, reason: str) -> None:
        """End this process; the heartbeat's thread calls this, because the main one may wait for dead ranks."""
        logger.error("%s", reason)
        self._record(TrainingError(reason), FAILED)
        os._exit(FAILED)

    def _explained(self, error: BaseException) -> BaseException:
        """Returns a RunError for an OSError on a file of the run, and other errors unchanged."""
        if not isinstance(error, OSError):
            return error
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str)]
        if not any(Path(name).is_relative_to(self.run_dir) for name in names):
            return error
        explained = RunError.unwritable(self.run_dir, error)
        explained.__cause__ = error
        return explained

    def _record(self, error: BaseException, exit_code: int) -> MoETrainError | None:
        """Write error.json; returns the error if that fails and the caller can report it."""
        trace = "".join(traceback.format_exception(error))
        with suppress(OSError):  # error.json has it too
            self._log.write(trace)
        content = {
            "rank": self.rank,
            **self._heartbeat.facts(),
            "type": type(error).__name__,
            "message": str(error),
            "explained": isinstance(error, MoETrainError),
            "traceback": trace,
            "exit_code": exit_code,
        }
        try:
            replace_text(self.folder / ERROR_FILE, json.dumps(content, indent=1) + "\n")
        except OSError as failure:
            if self._launcher is None and isinstance(error, MoETrainError):
                return error
            logger.error("error.json could not be written (%s): %s", failure.strerror, error)
        return None

    def _send_output_to_log(self) -> None:
        """Send all output, also that of native code, to log.txt; only rank 0 keeps the terminal for its messages."""
        terminal = output_stream(os.dup(1), sys.stdout, is_result=False)
        sys.stderr.flush()
        if self.rank == 0:
            sys.stdout = sys.stderr = terminal
        for descriptor in (1, 2):
            os.dup2(self._log.fileno(), descriptor)

    def _start_logging(self) -> None:
        to_file = _FileHandler(self._log)
        to_file.setFormatter(logging.Formatter(LOG_FORMAT))
        self._handlers = [to_file]
        if self.rank == 0:
            self._handlers.append(_TerminalHandler(logging.INFO))
        root = logging.getLogger()
        for handler in self._handlers:
            root.addHandler(handler)
        logging.getLogger("moe_train").setLevel(logging.DEBUG)
        logging.captureWarnings(True)

    def _restore(self) -> None:
        """Undo what would outlive the run in the process of a caller; a launched worker is about to exit.

        Python drops its signal handlers before it exits, and a stop signal may arrive only then: it must not replace
        the exit code.
        """
        if self._launcher is not None:
            for number in self._signals_before:
                signal.signal(number, signal.SIG_IGN)
            return
        for number, handler in self._signals_before.items():
            signal.signal(number, handler)
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
        logging.captureWarnings(False)
        faulthandler.disable()
        with suppress(OSError):  # the disk is full
            self._log.close()


class _FileHandler(logging.StreamHandler[IO[str]]):
    """Writes log.txt, and drops what a full disk does not take: logging would print a traceback for every line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Ignore it: what ends a run is in error.json or on the terminal."""


class _TerminalHandler(logging.Handler):
    """Writes moe-train's messages and all errors to the current sys.stderr, which a live view replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("moe_train") or record.levelno >= logging.ERROR:
            sys.stderr.write(f"{record.getMessage()}\n")


def _exit_code(error: BaseException) -> int | None:
    """Returns the contract's exit code for an exception; None for a KeyboardInterrupt, which is not a failure."""
    if isinstance(error, KeyboardInterrupt):
        return None
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else DONE if error.code is None else FAILED
    return error.exit_code if isinstance(error, MoETrainError) else FAILED
