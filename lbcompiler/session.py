"""Calls that continue each other: a decoder reads a prompt, then a token at a time.

What the model grows from call to call (keys and values; the manifest's `states`) is held here, in
the memory the code appends to, and neither given nor returned: a call takes what is new and gives
the rest of the outputs. Memory is doubled when it is full, so a token costs a copy of the past only
as often as its length has doubled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lbcompiler.errors import InputError
from lbcompiler.ir.model import Array
from lbcompiler.tensors import Memory

if TYPE_CHECKING:
    from lbcompiler.runtime import Program

FIRST_ROOM = 256  # rows: some hundred kilobytes a layer of a small model


class Session:
    """The past of one run of a program. Several may share a program, one call at a time."""

    def __init__(self, program: Program, room: int = 0) -> None:
        manifest = program.manifest
        if not manifest.states:
            raise InputError(
                f"{program.artifact.path} carries nothing from call to call: a session needs a "
                "model that concatenates an input (past keys) with new rows and returns the result"
            )
        self._program, self._room = program, max(room, FIRST_ROOM)
        self._states = {state.input: state for state in manifest.states}
        self._inputs = [port for port in manifest.inputs if port.name not in self._states]
        self._rows = {state.past: state.rows for state in manifest.states}
        self._bounds = [dim for dim in manifest.dims if dim.name in self._rows]
        self._memory: dict[str, Memory] = {}
        self._rooms: dict[str, int] = {}  # rows that the memories along each past have room for
        self._fixed: dict[str, int] = {}  # dimensions that the memory was made for
        self._outputs = {state.output for state in manifest.states}
        self.pasts: dict[str, int] = dict.fromkeys(manifest.pasts, 0)

    def __call__(self, *args: Any, **named: Any) -> dict[str, Array]:
        """The outputs that are no state, by name, of the inputs that are none."""
        return self.run(self._program.by_name(self._inputs, args, named))

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """As `Program.run`, behind what earlier calls gave. A call that fails adds nothing."""
        arrays, sizes = self._program.checked(feeds, self._inputs)
        after = self._after(sizes)
        self._check(sizes)
        if any(need > self._rooms.get(past, -1) for past, need in after.items()):
            self._make_room(sizes, after)
        tensors = [
            self._program.place.put(arrays[port.name])
            if port.name in arrays
            else self._memory[port.name].tensor
            for port in self._program.manifest.inputs
        ]
        returned = self._program.execute(tensors, {**sizes, **self.pasts})
        self.pasts = after
        return self._program.arrays_of(returned, tensors, skipped=self._outputs)

    def rewind(self, length: int = 0) -> None:
        """Forget all but the first `length` rows, to go on from there."""
        if length < 0:
            raise InputError(f"a session cannot be rewound to {length} rows")
        self.pasts = {name: min(past, length) for name, past in self.pasts.items()}

    def states(self) -> dict[str, Array]:
        """What is held, under the names and in the layout of the model's outputs. The arrays are
        views: the next call may write behind them or leave them for a larger memory.
        """
        held = {}
        for name, memory in self._memory.items():
            state = self._states[name]
            held[state.output] = np.moveaxis(memory.read(self.pasts[state.past]), 0, state.axis)
        return held

    def _after(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The pasts behind this call; those before it are within their bounds."""
        for dim in self._bounds:
            past = self.pasts[dim.name]
            if not dim.low <= past <= (dim.high or past):
                raise InputError(
                    f"the session holds {past} rows along {dim.name!r} and the model was compiled "
                    f"for {dim.low}..{dim.high or ''}: rewind it, or compile with a wider --input "
                    "range, such as (0..2048)"
                )
        return {
            past: self.pasts[past] + (rows if isinstance(rows, int) else sizes[rows])
            for past, rows in self._rows.items()
        }

    def _check(self, sizes: Mapping[str, int]) -> None:
        """Every size that the memory was made for is what it was."""
        changed = next((n for n, size in self._fixed.items() if sizes[n] != size), None)
        if changed is not None and self._rooms:  # else nothing was begun
            raise InputError(
                f"the session was begun with {changed} = {self._fixed[changed]} and is given "
                f"{sizes[changed]}: begin another session"
            )

    def _make_room(self, sizes: Mapping[str, int], after: Mapping[str, int]) -> None:
        if not self._rooms:
            self._memory.clear()  # of a first call that found too little
            self._fixed = {name: sizes[name] for name in self._named() if name in sizes}
        rooms = {}
        for port in self._program.manifest.inputs:
            state = self._states.get(port.name)
            if state is None:
                continue
            need, memory = after[state.past], self._memory.get(port.name)
            if memory is None:
                inner = [self._extent(d, port.name) for d in _without(port.shape, state.axis)]
                memory = self._program.place.memory(inner, port.dtype, max(need, self._room))
                self._memory[port.name] = memory
            elif memory.room < need:
                memory.grow(max(need, 2 * memory.room), kept=self.pasts[state.past])
            rooms[state.past] = memory.room
        self._rooms = rooms  # once every memory has them: a device may have had too little

    def _named(self) -> set[str]:
        """The dynamic dimensions of the states but for their pasts."""
        ports = self._program.manifest.inputs
        return {
            dim
            for port in ports
            if port.name in self._states
            for dim in _without(port.shape, self._states[port.name].axis)
            if isinstance(dim, str)
        }

    def _extent(self, dim: int | str, name: str) -> int:
        if isinstance(dim, str) and dim not in self._fixed:
            raise InputError(
                f"how large dimension {dim!r} of {name!r} is cannot be known from the inputs of a "
                "session: call the program itself, or compile with a fixed size (--input)"
            )
        return self._fixed[dim] if isinstance(dim, str) else dim


def _without(shape: list[int | str], axis: int) -> list[int | str]:
    return [*shape[:axis], *shape[axis + 1 :]]
