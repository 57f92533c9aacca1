"""The symbolic integers of a torch program, as TIR expressions under their bounds.

torch.export has already worked out every shape, so no shape is inferred again: what is symbolic
in a fake tensor is a sympy expression of a few symbols, each of which is read from one input
dimension here. A symbol that a caller fixes becomes an int everywhere, and what bounds decide
(`Min(1, s)` with s >= 2) is simplified away before TVM sees it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tvm import sym, tirx

from lbcompiler.errors import ModelError
from lbcompiler.ir.model import Dim

Extent = Any  # int | tvm.tirx expression
Requested = Sequence[int | str | Dim]
TIR = {
    "FloorDiv": tirx.floordiv,
    "CleanDiv": tirx.floordiv,
    "Mod": tirx.floormod,
    "PythonMod": tirx.floormod,
    "CeilDiv": lambda a, b: tirx.floordiv(a + b - 1, b),
    "ModularIndexing": lambda a, b, c: tirx.floormod(tirx.floordiv(a, b), c),
    "Max": tirx.max,
    "Min": tirx.min,
}


@dataclass
class Shapes:
    """Maps sympy expressions of the program's symbols to ints and TIR expressions."""

    symbols: dict[str, Extent] = field(default_factory=dict)
    dims: list[Dim] = field(default_factory=list)
    bounds: Any = field(default_factory=sym.Analyzer)
    unbounded: Any = field(default_factory=sym.Analyzer)  # what TVM itself can prove

    def define(self, dim: Dim) -> Any:
        """A new TIR variable for a dynamic input dimension."""
        variable = tirx.Var(dim.name, "int64")
        high = sym.ConstIntBound.POS_INF if dim.high is None else dim.high
        self.bounds.update(variable, sym.ConstIntBound(dim.low, high))
        self.dims.append(dim)
        return variable

    def extent(self, value: Any) -> Extent:
        """An int, torch.SymInt or sympy expression as an int or a simplified TIR expression."""
        if isinstance(value, int):
            return value
        expression = value.node.expr if hasattr(value, "node") else value
        return self.simplify(self._translate(expression))

    def simplify(self, extent: Extent) -> Extent:
        if isinstance(extent, int):
            return extent
        simple = self.bounds.simplify(extent)
        return int(simple) if isinstance(simple, tirx.IntImm) else simple

    def tensor(self, fake: Any) -> list[Extent]:
        """The shape of a fake tensor."""
        return [self.extent(extent) for extent in fake.shape]

    def same(self, left: Extent, right: Extent) -> bool:
        """Whether TVM, which knows no bounds, sees two extents as equal."""
        if isinstance(left, int) and isinstance(right, int):
            return left == right
        return bool(self.unbounded.can_prove_equal(left, right))

    def _translate(self, expression: Any) -> Extent:
        if expression.is_Integer:
            return int(expression)
        if expression.is_Symbol:
            return self._symbol(str(expression))
        name = type(expression).__name__
        if name in ("FloorToInt", "TruncToInt", "floor"):
            return _floor(*self._ratio(expression.args[0]))
        if name in ("CeilToInt", "ceiling"):
            numerator, denominator = self._ratio(expression.args[0])
            return _floor(numerator + (denominator - 1), denominator)
        if name in ("Pow", "PowByNatural") and expression.args[1].is_Integer:
            return _product([self._translate(expression.args[0])] * int(expression.args[1]))
        arguments = [self._translate(argument) for argument in expression.args]
        if name == "Add":
            return sum(arguments[1:], arguments[0])
        if name in ("Mul", "Identity"):
            return _product(arguments)
        if name not in TIR:
            raise ModelError(
                f"The size {expression} of the torch program uses {name}, which is not supported: "
                "fix the dimensions it depends on with an input shape."
            )
        if all(isinstance(argument, int) for argument in arguments):
            arguments = [tirx.IntImm("int64", argument) for argument in arguments]
        result, *rest = arguments
        if name in ("Max", "Min"):  # sympy's take any number of arguments
            for argument in rest:
                result = TIR[name](result, argument)
            return self.simplify(result)
        return self.simplify(TIR[name](*arguments))

    def _symbol(self, name: str) -> Extent:
        if name not in self.symbols:
            raise ModelError(
                f"A size of the torch program is computed from data (symbol {name}), as by "
                "nonzero, masks as indices or .item(): only sizes that follow from the shapes of "
                "the inputs can be compiled."
            )
        return self.symbols[name]

    def _ratio(self, expression: Any) -> tuple[Extent, Extent]:
        """A sympy expression over floats (scale factors of interpolate) as an exact quotient."""
        name = type(expression).__name__
        if expression.is_Float or expression.is_Rational:
            exact = Fraction(str(expression)).limit_denominator(1 << 20)
            return exact.numerator, exact.denominator
        if name == "ToFloat":
            return self._ratio(expression.args[0])
        if name in ("IntTrueDiv", "FloatTrueDiv"):
            (a, b), (c, d) = (self._ratio(argument) for argument in expression.args)
            return a * d, b * c
        if name == "Mul":
            pairs = [self._ratio(argument) for argument in expression.args]
            return _product([pair[0] for pair in pairs]), _product([pair[1] for pair in pairs])
        return self._translate(expression), 1


def _floor(numerator: Extent, denominator: Extent) -> Extent:
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator // denominator
    return tirx.floordiv(numerator, denominator)


def _product(factors: Sequence[Extent]) -> Extent:
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def bind_inputs(
    fakes: Mapping[str, Any],
    ranges: Mapping[Any, Any],
    requested: Mapping[str, Requested],
) -> tuple[Shapes, dict[str, list[Extent]]]:
    """Read every symbol from an input dimension; -> (shapes, the shape of each input).

    `fakes`: the inputs' fake tensors by name; `ranges`: the program's `range_constraints`;
    `requested`: the caller's shapes by input name, where an int fixes a dimension, a str names it
    and a `Dim` names and bounds it. Raises ModelError where these disagree.
    """
    if unknown := set(requested) - set(fakes):
        raise ModelError(
            f"The torch program has no input {', '.join(sorted(unknown))}: "
            f"its inputs are {', '.join(fakes)}."
        )
    for name, shape in requested.items():
        if len(shape) != len(fakes[name].shape):
            raise ModelError(
                f"Input {name} of the torch program has {len(fakes[name].shape)} dimensions "
                f"{tuple(fakes[name].shape)}; the shape asked for has {len(shape)}: {tuple(shape)}."
            )
    binder = _Binder(Shapes(), ranges)
    sites = [
        (name, axis, extent, requested[name][axis] if name in requested else None)
        for name, fake in fakes.items()
        for axis, extent in enumerate(fake.shape)
    ]
    # What was asked comes first, so that one answer holds for all dimensions of its symbol; then
    # bare symbols come before `2*s`, from which a symbol can only be had by division.
    for site in sorted(sites, key=lambda site: (_urgency(site[3]), not _is_bare(site[2]))):
        binder.bind(*site)
    shapes: dict[str, list[Extent]] = {name: [] for name in fakes}
    for name, axis, extent, _ in sites:
        shapes[name].append(binder.extents.get((name, axis), binder.shapes.extent(extent)))
    order = [str(extent) for shape in shapes.values() for extent in shape]
    binder.shapes.dims.sort(key=lambda dim: order.index(dim.name))
    return binder.shapes, shapes


def _urgency(wanted: int | str | Dim | None) -> int:
    return next((i for i, kind in enumerate((int, Dim, str)) if isinstance(wanted, kind)), 3)


def _is_bare(extent: Any) -> bool:
    return isinstance(extent, int) or bool(extent.node.expr.is_Symbol)


@dataclass
class _Binder:
    shapes: Shapes
    ranges: Mapping[Any, Any]
    extents: dict[tuple[str, int], Any] = field(default_factory=dict)  # of dimensions such as 2*s

    def bind(self, name: str, axis: int, extent: Any, wanted: int | str | Dim | None) -> None:
        expression = None if isinstance(extent, int) else extent.node.expr
        place = f"dimension {axis} of input {name}"
        if expression is None or expression.is_Integer:
            self._check_fixed(place, int(extent), wanted)
            return
        symbol, scale, offset = _linear(expression, place)
        bound = self.shapes.symbols.get(str(symbol))
        if isinstance(bound, int):
            if not isinstance(wanted, Dim | str):
                self._check_fixed(place, bound * scale + offset, wanted)
            return
        low, high = self._range(symbol)
        low, high = low * scale + offset, None if high is None else high * scale + offset
        if isinstance(wanted, int):
            _check_within(place, wanted, low, high)
            if (wanted - offset) % scale:
                raise ModelError(
                    f"The {place} of the torch program is {expression}: it cannot be {wanted}."
                )
            self.shapes.symbols[str(symbol)] = (wanted - offset) // scale
            return
        if bound is not None:
            self._check_agreeing(place, bound, wanted)
            return
        if low == high:
            self.shapes.symbols[str(symbol)] = (low - offset) // scale
            return
        variable = self.shapes.define(self._dim(place, f"{name}_{axis}", wanted, low, high))
        if (scale, offset) == (1, 0):
            self.shapes.symbols[str(symbol)] = variable
            return
        self.shapes.symbols[str(symbol)] = tirx.floordiv(variable - offset, scale)
        self.extents[name, axis] = variable

    def _range(self, symbol: Any) -> tuple[int, int | None]:
        if symbol not in self.ranges:
            return 1, None
        allowed = self.ranges[symbol]
        high = int(allowed.upper) if allowed.upper.is_Integer else None
        return max(1, int(allowed.lower)), high

    def _dim(
        self, place: str, default: str, wanted: str | Dim | None, low: int, high: int | None
    ) -> Dim:
        if not isinstance(wanted, Dim):
            said = None if wanted == "?" else wanted  # ? stays as the program has it
            return Dim(self._unused(said or default), low, high)
        if wanted.low > 1:  # 1 is what an unsaid lower bound is
            _check_within(place, wanted.low, low, high)
            low = wanted.low
        if wanted.high is not None:
            _check_within(place, wanted.high, low, high)
            high = wanted.high
        return Dim(self._unused(wanted.name or default), low, high)

    def _check_agreeing(self, place: str, bound: Any, wanted: str | Dim | None) -> None:
        if not isinstance(wanted, Dim) or not isinstance(bound, tirx.Var):
            return
        dim = next(dim for dim in self.shapes.dims if dim.name == bound.name)
        if max(wanted.low, dim.low) != dim.low or wanted.high not in (None, dim.high):
            raise ModelError(
                f"The {place} of the torch program is the same size as {dim.name}, which has the "
                f"bounds {dim.low} to {dim.high}: ask for the same bounds, or for none."
            )

    def _unused(self, name: str) -> str:
        taken = {dim.name for dim in self.shapes.dims}
        return name if name not in taken else f"{name}_{len(taken)}"

    def _check_fixed(self, place: str, extent: int, wanted: int | str | Dim | None) -> None:
        if wanted is None or (isinstance(wanted, int) and wanted == extent):
            return
        raise ModelError(
            f"The {place} of the torch program is fixed to {extent}, not {wanted}: "
            "export it again with that dimension in dynamic_shapes."
        )


def _check_within(place: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        raise ModelError(
            f"The {place} of the torch program was exported for {low} to {high or 'any size'}: "
            f"{value} is outside. Ask for a size within, or export it with wider bounds."
        )


def _linear(expression: Any, place: str) -> tuple[Any, int, int]:
    """(symbol, scale, offset) of `scale * symbol + offset`."""
    symbols = expression.free_symbols
    if len(symbols) == 1:
        (symbol,) = symbols
        offset = expression.subs(symbol, 0)
        scale = expression.subs(symbol, 1) - offset
        if (expression - scale * symbol - offset).expand() == 0 and scale > 0:
            return symbol, int(scale), int(offset)
    raise ModelError(
        f"The {place} of the torch program is {expression}: only multiples of one dynamic "
        "dimension are supported. Export it with a dimension of its own."
    )
