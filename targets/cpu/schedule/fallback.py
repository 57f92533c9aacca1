"""What no other rule takes: its own loops, the outermost ones in parallel where that is legal."""

from typing import Any

from tvm import s_tir


def schedule_fallback(function: Any) -> Any:
    """The PrimFunc, changed only where that is safe."""
    scheduled = function.with_attr("tirx.is_scheduled", True)
    if not isinstance(function.body, s_tir.SBlockRealize):
        return scheduled  # no blocks: loops written by hand
    schedule = s_tir.Schedule(function)
    root = schedule.get_sblock(function.body.block.name_hint)
    for block in schedule.get_child_blocks(root):
        _parallelize(schedule, block)
    return schedule.mod["main"].with_attr("tirx.is_scheduled", True)


def _parallelize(schedule: Any, block: Any) -> None:
    """Run the leading data-parallel loops of a block on all threads, if its dependencies allow."""
    iterators = schedule.get(block).iter_vars
    loops = schedule.get_loops(block)
    spatial = 0
    while spatial < min(len(loops), len(iterators)) and not int(iterators[spatial].iter_type):
        spatial += 1
    if not spatial:
        return
    try:
        schedule.parallel(schedule.fuse(*loops[:spatial]) if spatial > 1 else loops[0])
    except s_tir.ScheduleError:
        return  # it writes one place from several iterations
