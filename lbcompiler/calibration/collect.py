"""One pass of the float model over the calibration data: statistics of every group's input.

The pass is interrupted without loss: what was gathered is kept in the state folder now and then,
and when it ends early. Every group counts its own batches, so that one which was stopped between
two groups is not counted twice."""

import time
from collections.abc import Sequence

import numpy as np

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
    if (whole := state.load(name)) is not None:
        return {group.name: statistics_of(whole, f"{group.name}/") for group in groups}
    partial = state.load(unfinished)
    found = {
        group.name: InputStatistics.empty(group.k, with_hessian)
        if partial is None
        else statistics_of(partial, f"{group.name}/")
        for group in groups
    }
    done = min((statistics.batches for statistics in found.values()), default=0)
    total, last = samples.count or 0, time.monotonic()
    held_back = -(-SAMPLE_ROWS // total) if total else ROWS_A_BATCH
    try:
        for index, feeds in enumerate(samples):
            if index >= done:
                progress("calibrate", index, total)
                _observe(simulator, feeds, index, held_back, found)
            if time.monotonic() - last > SECONDS_BETWEEN:
                state.save(unfinished, _named(found))
                last = time.monotonic()
    except BaseException:
        state.save(unfinished, _named(found))
        raise
    for statistics in found.values():
        statistics.end()
    _check(groups, found, samples.name)
    state.save(name, _named(found))
    state.remove(unfinished)
    progress("calibrate", total, total)
    return found


def _observe(
    simulator: Simulator, feeds: Feeds, index: int, held_back: int, found: Statistics
) -> None:
    """Up to the last group's input: nobody reads what comes behind it."""
    run, compute = simulator.start(feeds), float_linears(simulator)
    draw = np.random.default_rng(index)
    for group in simulator.groups:
        x, statistics = simulator.reach(run), found[group.name]
        if statistics.batches == index:
            mask = token_input(feeds, "attention_mask", x.shape[:-1])  # false where it is padding
            seen = None if mask is None else mask.astype(bool)
            statistics.add(x, seen, held_back, draw)
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


def _named(found: Statistics) -> dict[str, Array]:
    return {
        f"{name}/{key}": array
        for name, statistics in found.items()
        for key, array in statistics.arrays().items()
    }
