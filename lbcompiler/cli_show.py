"""What verbs print: tables and JSON on stdout, progress on stderr where someone looks at it."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lbcompiler.cli_errors import end_if_interrupted

PIPE_WIDTH = 250  # of a table that no terminal bounds: layer names are long

Progress = Callable[[str, int, int], None]


def print_json(value: Any) -> None:
    """One object; NaN and infinity, which JSON has not, become null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(held) for held in value]
    return value


def print_line(text: str = "") -> None:
    print(text)


def print_warning(text: str) -> None:
    """On stderr: stdout is for results."""
    print(f"warning: {text}", file=sys.stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Numbers stand right; what holds nothing for any row is left out."""
    held = [[_cell(value) for value in row] for row in rows]
    shown = [i for i in range(len(columns)) if any(row[i] for row in held)]
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i in shown:
        numeric = all(_is_number(row[i]) for row in held)
        table.add_column(columns[i], justify="right" if numeric else "left", overflow="fold")
    for row in held:
        table.add_row(*(Text(row[i]) for i in shown))  # Text: a name such as a[0] is no markup
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True


def size(count: int) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"


def shape(dims: Iterable[int | str]) -> str:
    return "x".join(map(str, dims)) or "scalar"


@contextmanager
def progress_bar(quiet: bool) -> Iterator[Progress]:
    """One bar for each stage, while it lasts; nothing unless stderr is a terminal.

    What reports its progress ends here after a Ctrl-C that was lost on its way (`cli_signals`).
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _stage, _done, _total: end_if_interrupted()
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description:10}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            end_if_interrupted()
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


def speed(artifact: Any, model: Path, progress: Progress) -> dict[str, float] | str:
    """Against the float model, or why that is not known: the artifact is made and stays."""
    from lbcompiler.errors import LbcError, last_line
    from lbcompiler.speed import compare

    progress("measure", 0, 1)
    try:
        return compare(artifact, model)
    except LbcError as error:
        return str(error)
    except Exception as error:  # the runtimes' own: a finished artifact is no failure for them
        return f"{type(error).__name__}: {last_line(error)}"
