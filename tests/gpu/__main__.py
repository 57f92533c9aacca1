"""`python -m tests.gpu`: is what the kernels compute on this GPU right, and how fast are they?

One command, no network, as long as `--seconds` allows; docs/cuda.md says what is checked. Progress
goes to stderr, a table to stdout, everything to `--json`, which is whole after every check. Exit
status: 0, 1 where a check failed, 2 where none was run to its end (or, with `--build`, built).

`--build DIR --capability 9.0` compiles all of it on a machine without a GPU, `--built DIR` runs it
on one without a compiler.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lbcompiler.errors import ConfigError
from lbcompiler.files import appearing
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.toolchain import find_nvcc
from tests.gpu import environment, run
from tests.gpu.builders import build_all
from tests.gpu.check import CRASHED, FAILED, MEASURED, PASSED, SKIPPED, Record
from tests.gpu.plan import Options, archs_of, plan

SECONDS = 540.0
WRONG = (FAILED, CRASHED)
NOT_REACHED = "not reached"
OPTIONS = "options.json"  # of what was built, beside it
CAPABILITY = (9, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _asked(arguments)
    start = time.monotonic()
    if asked.build is not None:
        return _build(asked)
    here = environment.look(asked.built is not None)
    for name, fact in here.facts.items():
        print(f"{name}: {fact}", file=sys.stderr)
    for text in here.missing:
        print(f"missing: {text}", file=sys.stderr)
    if not here.can_check or here.gpu is None:
        _write(asked.json, here, [], start)
        print("no check could be run: see what is missing above")
        return 2
    archs = archs_of(here.gpu.capability)
    if not archs:
        print(f"there are no kernels for {here.gpu.name}")
        return 2
    options = _options(asked, archs)
    if options is None:
        return 2
    print(f"{len(plan(options))} checks of {', '.join(archs)}", file=sys.stderr)
    told: list[Record] = []

    def tell(record: Record) -> None:
        told.append(record)
        passed = time.monotonic() - start
        print(f"[{passed:5.0f} s] {_line(record)}", file=sys.stderr, flush=True)
        _write(asked.json, here, told, start)

    records = run.run_all(options, asked.seconds - (time.monotonic() - start), tell, asked.built)
    _write(asked.json, here, records, start)
    print(summary(records))
    if any(record.status in WRONG for record in records):
        return 1
    return 0 if any(record.status in (PASSED, MEASURED) for record in records) else 2


def _options(asked: argparse.Namespace, archs: tuple[str, ...]) -> Options | None:
    """What is asked for, or was when it was built; None where that cannot be, which is said."""
    options = _held(asked, archs)
    if options is not None and not plan(options):
        print(f"there is no check whose name holds {' or '.join(options.only)}")
        return None
    return options


def _held(asked: argparse.Namespace, archs: tuple[str, ...]) -> Options | None:
    if asked.built is not None:
        if not (asked.built / OPTIONS).is_file():
            print(f"{asked.built} is not what --build leaves: it has no {OPTIONS}")
            return None
        held = Options.of((asked.built / OPTIONS).read_text())
        if not set(held.archs) <= set(archs):
            print(f"{asked.built} is for {', '.join(held.archs)}, which this GPU does not run")
            return None
        return replace(held, only=tuple(asked.only) or held.only)
    models = {}
    for text in asked.model:
        label, _, name = text.partition("=")
        path = Path(name).resolve()  # builders run elsewhere
        if not path.is_file():
            print(f"--model {text}: there is no such file")
            return None
        models[label] = str(path)
    return Options(archs, models, asked.small, tuple(asked.only))


def _build(asked: argparse.Namespace) -> int:
    """0, 1 where a check could not be built, 2 where nothing was."""
    archs = archs_of(asked.capability or CAPABILITY)
    if not archs or asked.build.exists():
        print(f"there are no kernels for that GPU, or there is already a {asked.build}")
        return 2
    options = _options(asked, archs)
    if options is None:
        return 2
    try:
        for name in archs:
            find_nvcc().check(arch_named(name))
    except ConfigError as error:
        print(f"nothing can be built: {error}")
        return 2
    asked.build.mkdir(parents=True)
    (asked.build / OPTIONS).write_text(options.to_json())

    def tell(done: int, total: int) -> None:
        print(f"{done} of {total} are built", file=sys.stderr)

    reasons = build_all(asked.build, options, tell)
    failed = {name: reason for name, reason in reasons.items() if reason is not None}
    for name, reason in failed.items():
        print(f"not built: {name}: {reason}")
    if len(failed) == len(reasons):
        return 2
    return 1 if failed else 0


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.built and (asked.build or asked.model or asked.small or asked.capability):
        parser.error("--built runs what was built: it takes no --build, --model, --small or "
                     "--capability")  # fmt: skip
    if asked.capability and not asked.build:
        parser.error("--capability says what --build is for: without, it is this machine's GPU")
    if asked.build and asked.json:
        parser.error("--build runs nothing: there is nothing for --json")
    return asked


def _path(text: str) -> Path:
    """Builders and workers run in a folder of their own."""
    return Path(text).resolve()


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--json", type=_path, help="where to write what was found")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which it ends")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=PATH", help="an .onnx to run as well"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="checks whose name holds it"
    )
    parser.add_argument("--build", type=_path, metavar="DIR", help="compile into it, run nothing")
    parser.add_argument(
        "--capability", type=_capability, help="of the GPU that --build is for (9.0)"
    )
    parser.add_argument("--built", type=_path, metavar="DIR", help="run what --build left there")
    parser.add_argument("--small", action="store_true", help="shapes for an emulated GPU")
    return parser


def summary(records: Sequence[Record]) -> str:
    """A line for each measure and each check that did not pass, and how many did; what there was
    no time for is not among what is skipped.
    """
    lines = [_line(r) for r in records if r.status == MEASURED or r.status in WRONG]
    counts = dict.fromkeys((PASSED, MEASURED, FAILED, CRASHED, SKIPPED, NOT_REACHED), 0)
    for record in records:
        is_unreached = record.status == SKIPPED and record.reason.startswith(run.OVER)
        counts[NOT_REACHED if is_unreached else record.status] += 1
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return "\n".join([*lines, told])


def _line(record: Record) -> str:
    figures = ", ".join(f"{name} {_figure(value)}" for name, value in record.figures.items())
    said = " | ".join(text for text in (figures, record.reason) if text)
    return f"{record.status:8} {record.name}: {said}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(
    path: Path | None, here: environment.Environment, records: Sequence[Record], start: float
) -> None:
    if path is None:
        return
    held = {
        "environment": here.facts,
        "missing": here.missing,
        "seconds": time.monotonic() - start,
        "records": [asdict(record) for record in records],
    }
    with appearing(path) as partial:
        partial.write_text(json.dumps(held, indent=1))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    sys.exit(main())
