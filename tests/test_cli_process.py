"""The command line as a process: signals, pipes, terminals."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

SLOW = """
import sys, time
from pathlib import Path
import lbcompiler
from lbcompiler.artifact import new_folder
from lbcompiler import cli

def compile(model, *, output, force, **_):
    with new_folder(output, force) as folder:
        (folder / "half").write_text("written")
        print("started", file=sys.stderr, flush=True)
        time.sleep(30)

lbcompiler.__dict__["compile"] = compile
sys.argv = ["lbc", "compile", "m.onnx", "-o", "out.lbc"]
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    assert len(list(tmp_path.iterdir())) == 1
    start = time.perf_counter()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors == ("error: interrupted\n" if number == signal.SIGINT else "")
    assert time.perf_counter() - start < 10
    assert list(tmp_path.iterdir()) == []


INSIDE_EXEC = """
import sys
import lbcompiler
from lbcompiler import cli

def compile(model, **_):
    exec("raise KeyboardInterrupt")  # as where a dataclass is being made

lbcompiler.__dict__["compile"] = compile
sys.argv = ["lbc", "compile", "m.onnx", "-o", "out.lbc"]
cli.main()
"""


def test_an_interruption_inside_exec_is_code_130_too(tmp_path: Path) -> None:
    (tmp_path / "inside_exec.py").write_text(INSIDE_EXEC)
    command = [sys.executable, "-m", "inside_exec"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


SWALLOWED = """
import os, signal, sys, time
import lbcompiler
from lbcompiler import cli

def compile(model, **_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        raise RuntimeError from None  # what TVM makes of it where its code called Python

lbcompiler.__dict__["compile"] = compile
sys.argv = ["lbc", "compile", "m.onnx", "-o", "out.lbc"]
cli.main()
"""


def test_an_interruption_that_became_another_error_is_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SWALLOWED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


STUCK = """
import hashlib, sys, tempfile, threading
from pathlib import Path
import lbcompiler
from lbcompiler import cli, cli_signals, files

def compile(model, *, output, **_):
    with files.unfinished(Path(tempfile.mkdtemp(prefix=".out.", dir="."))) as folder:
        (folder / "half").write_text("written")
        threading.Timer(0.5, lambda: print("started", file=sys.stderr, flush=True)).start()
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)  # one call of C, deaf for minutes

cli_signals.GRACE_S = float(sys.argv[1])
lbcompiler.__dict__["compile"] = compile
sys.argv = ["lbc", "compile", "m.onnx", "-o", "out.lbc"]
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_even_what_is_deaf(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, "0.2"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert errors == ("error: interrupted\n" if number == signal.SIGINT else "")
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_waits_for_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, "600"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_search_says_what_is_kept(tmp_path: Path) -> None:
    database = tmp_path / "t.db"
    arguments = ("tune", "--shape", "16x64x64", "--act-format", "none", "--db", str(database))
    process = subprocess.Popen(
        [sys.executable, "-m", "lbcompiler", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while measured(database) < 1:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "error: interrupted\n"
    assert "16x64x64" in output
    assert f"kept in {database}" in output
    assert measured(database) >= 1


def measured(database: Path) -> int:
    """Trials in it that are over; none while it is being made."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'")
        return int(found.fetchone()[0])
    return 0


def test_a_closed_pipe_is_left_in_silence() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lbcompiler", "formats", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_is_one_paragraph(options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lbcompiler", "formats", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: the system refused: No space left on device\n"


def test_progress_is_only_for_terminals() -> None:
    """A pseudo-terminal as stderr gets bars; stdout never does."""
    pty = pytest.importorskip("pty")
    code = (
        "import sys, time; from lbcompiler.cli_show import progress_bar\n"
        "with progress_bar(sys.argv[1] == 'quiet') as report:\n"
        "    report('weights', 1, 2); time.sleep(0.2); report('weights', 2, 2)"
    )
    seen = {}
    for mode in ("loud", "quiet"):
        controller, terminal = pty.openpty()
        done = subprocess.run(
            [sys.executable, "-c", code, mode], stdout=subprocess.PIPE, stderr=terminal, check=True
        )
        os.close(terminal)
        os.set_blocking(controller, False)
        try:
            seen[mode] = os.read(controller, 65536)
        except (BlockingIOError, OSError):  # Linux answers EIO once the other end is closed
            seen[mode] = b""
        os.close(controller)
        assert done.stdout == b""
    assert b"weights" in seen["loud"]
    assert seen["quiet"] == b""
