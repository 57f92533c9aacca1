"""One pass of the float model over the calibration data: statistics of every group's input.

The pass is interrupted without loss: what was gathered is kept in the state folder now and then,
and when it ends early. Every group counts its own batches, so that one which was stopped between
two groups is not counted twice. Hessians that do not fit in memory are in a file which is added to
in place, so a process that is killed, with no time to say how far it is, begins again."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from lbcompiler.calibration import hessians
from lbcompiler.calibration.samples import Samples
from lbcompiler.calibration.segments import Group
from lbcompiler.calibration.simulator import Simulator, float_linears
from lbcompiler.calibration.state import State
from lbcompiler.calibration.statistics import InputStatistics, statistics_of
from lbcompiler.data import Feeds
from lbcompiler.errors import InputError
from lbcompiler.ir.model import Array
from lbcompiler.pipeline import Progress, silent
from lbcompiler.verify import token_input

SAMPLE_ROWS = 512  # held back to judge by
ROWS_A_BATCH = 16  # of them, where nobody knows how many batches there are
SECONDS_BETWEEN = 60.0

Statistics = dict[str, InputStatistics]  # by the group's name


def collect(
    simulator: Simulator,
    samples: Samples,
    state: State,
    name: str = "statistics",
    with_hessian: bool = True,
    progress: Progress = silent,
) -> Statistics:
    """Kept as `name` in the state folder, and taken from there where it is whole.

    Raises InputError where a group sees no row, or a value that is not finite."""
    groups, unfinished = simulator.groups, f"{name}.partial"
    file = state.mapped_file(f"{name}.hessians")
    if (whole := _kept(state, name, file, groups, "r")) is not None:
        return whole
    found = _kept(state, unfinished, file, groups, "r+")
    if found is None:
        found = _empty(groups, file, with_hessian)
    is_mapped = file.exists()
    if is_mapped:
        state.remove(unfinished)  # from here on it is behind the file
    done = min((statistics.batches for statistics in found.values()), default=0)
    total, last = samples.count or 0, time.monotonic()
    held_back = -(-SAMPLE_ROWS // total) if total else ROWS_A_BATCH
    try:
        for index, feeds in enumerate(samples):
            if index >= done:
                progress("calibrate", index, total)
                _observe(simulator, feeds, index, held_back, found)
            if not is_mapped and time.monotonic() - last > SECONDS_BETWEEN:
                state.save(unfinished, _named(found, is_mapped))
                last = time.monotonic()
    except BaseException:
        state.save(unfinished, _named(found, is_mapped))
        raise
    for statistics in found.values():
        statistics.end()
    _check(groups, found, samples.name)
    state.save(name, _named(found, is_mapped))
    state.remove(unfinished)
    progress("calibrate", total, total)
    return found


def _kept(
    state: State, name: str, file: Path, groups: Sequence[Group], mode: Literal["r", "r+"]
) -> Statistics | None:
    """What is in the state folder, its Hessians mapped where they are in a file of their own."""
    arrays = state.load(name)
    if arrays is None:
        return None
    if file.exists():
        try:
            held = hessians.mapped(file, groups, mode)
        except (OSError, ValueError):
            return None
        arrays |= {f"{group}/hessian": hessian for group, hessian in held.items()}
    if any(f"{group.name}/hessian" not in arrays for group in groups):  # its file is gone
        return None
    return {group.name: statistics_of(arrays, f"{group.name}/") for group in groups}


def _empty(groups: Sequence[Group], file: Path, with_hessian: bool) -> Statistics:
    held: dict[str, Array] = {}
    file.unlink(missing_ok=True)  # nothing says what it is worth
    if with_hessian and hessians.fit_in_memory(groups):
        held = {group.name: np.zeros((group.k, group.k), np.float32) for group in groups}
    elif with_hessian:
        held = hessians.made(file, groups)
    return {group.name: InputStatistics.empty(group.k, held.get(group.name)) for group in groups}


def _observe(
    simulator: Simulator, feeds: Feeds, index: int, held_back: int, found: Statistics
) -> None:
    """Up to the last group's input: nobody reads what comes behind it."""
    run, compute = simulator.start(feeds), float_linears(simulator)
    draw = np.random.default_rng(index)
    for group in simulator.groups:
        x, statistics = simulator.reach(run), found[group.name]
        mask = token_input(feeds, "attention_mask", x.shape[:-1])  # false where it is padding
        seen = None if mask is None else mask.astype(bool)
        if statistics.batches == index:
            statistics.add(x, seen, held_back, draw)
        else:  # counted before the run was stopped: the groups behind draw as they would have then
            draw.permutation(x[..., 0].size if seen is None else np.count_nonzero(seen))
        if group is not simulator.groups[-1]:
            simulator.finish(run, compute(group, x))


def _check(groups: Sequence[Group], found: Statistics, source: str) -> None:
    for group in groups:
        statistics = found[group.name]
        if not len(statistics.sample):
            raise InputError(f"{source} gives layer {group.name!r} nothing to learn from: no rows")
        if not (np.isfinite(statistics.absmax).all() and np.isfinite(statistics.hessian).all()):
            raise InputError(
                f"the input of layer {group.name!r} becomes NaN or infinite on {source}: the float "
                "model overflows there; leave such samples out"
            )


def _named(found: Statistics, is_mapped: bool) -> dict[str, Array]:
    return {
        f"{name}/{key}": array
        for name, statistics in found.items()
        for key, array in statistics.arrays().items()
        if not (is_mapped and key == "hessian")
    }
