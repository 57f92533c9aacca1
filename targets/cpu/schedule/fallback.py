"""What no other rule takes: its own loops, the outermost ones in parallel where that is legal."""

from typing import Any

from tvm import s_tir


def schedule_fallback(function: Any) -> Any:
    """The PrimFunc, changed only where that is safe."""
    try:
        schedule = s_tir.Schedule(function)
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    except Exception:
        return function.with_attr("tirx.is_scheduled", True)
    for block in blocks:
        _parallelize(schedule, block)
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)


def _parallelize(schedule: Any, block: Any) -> None:
    iterators = schedule.get(block).iter_vars
    loops = schedule.get_loops(block)
    spatial = 0
    while spatial < min(len(loops), len(iterators)) and int(iterators[spatial].iter_type) == 0:
        spatial += 1
    if not spatial:
        return
    try:
        schedule.parallel(schedule.fuse(*loops[:spatial]) if spatial > 1 else loops[0])
    except s_tir.ScheduleError:
        return
