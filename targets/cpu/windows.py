"""The windows of a convolution on their way into a GEMM, without the float matrix of them.

im2col writes every input value kh * kw times, in float32, and the quantizer reads all of it again.
Here a row of that matrix exists in the L1 cache only (`Windows`, a source of rows); and where
blocks lie within pixels (the channels are whole blocks, and no scale belongs to a whole row) each
pixel is quantized once, and its operands are gathered into every window that has it
(`gather_windows`). Both make the same bits as im2col and quantize.

x is (N, H, W, C); K runs over (ky, kx, C); what is outside the image is zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.decode import divisor
from lbcompiler.targets.cpu.intrinsics import Expr, at, kernel, let, root_block, splat
from lbcompiler.targets.cpu.layout import padded

LANES = 16  # float32 in a vector here, on every instruction set
UNROLLED = 4  # vectors of one copy; a longer one is a loop
LINE = 64  # bytes of the widest vector


@dataclass(frozen=True)
class WindowShape:
    """A convolution's windows: (down, across) each; padding top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    channels: int

    @property
    def name(self) -> str:
        """For symbols: windows_3x3x16_by_1x1_pad_1_1_1_1_every_1x1."""
        size = "x".join(map(str, (*self.kernel, self.channels)))
        strides, pads, every = (
            mark.join(map(str, numbers))
            for mark, numbers in zip(
                "x_x", (self.strides, self.padding, self.dilation), strict=True
            )
        )
        return f"windows_{size}_by_{strides}_pad_{pads}_every_{every}"

    def counts(self, height: Expr, width: Expr) -> list[Expr]:
        """How many windows there are, down and across."""
        top, left, bottom, right = self.padding
        ends = zip((height, width), (top + bottom, left + right), range(2), strict=True)
        return [
            (extent + (pads - self.dilation[i] * (self.kernel[i] - 1) - 1)) // self.strides[i] + 1
            for extent, pads, i in ends
        ]


def window_shape(im2col: Any) -> WindowShape:
    """Of a call of `lbc.im2col`."""
    names = ("kernel", "strides", "padding", "dilation")
    kernel, strides, pads, dilation = (
        tuple(int(value) for value in im2col.attrs[name]) for name in names
    )
    channels = int(im2col.args[0].ty.shape.values[3])
    return WindowShape(kernel, strides, pads, dilation, channels)  # type: ignore[arg-type]


class Windows:
    """The rows of im2col(x), each copied into the L1 cache when the quantizer begins it."""

    def __init__(self, shape: WindowShape) -> None:
        self.shape = shape

    def arguments(self, m: Expr, k: int) -> None:
        """x f32 (N, H, W, C); m are all windows of it."""
        n, self.height, self.width = (tirx.Var(name, "int64") for name in ("n", "h", "w"))
        channels = self.shape.channels
        self.x = T.arg("x", T.buffer((n, self.height, self.width, channels), "float32"))

    def begin(self, row: Expr) -> None:
        shape, channels = self.shape, self.shape.channels
        count = shape.kernel[0] * shape.kernel[1] * channels
        down, across = shape.counts(self.height, self.width)
        line = let(row // across)
        image, y, x = let(line // down), let(line % down), let(row % across)
        self.row = T.alloc_buffer((padded(count, LANES),), "float32")
        if count % LANES:
            _fill(self.row, (), count // LANES * LANES, LANES, 0.0)
        _, left, _, _ = shape.padding
        first = let(x * shape.strides[1] - left)
        span = shape.kernel[1] * channels

        def pixels(ky: Expr, source_y: Expr) -> None:
            """A row of the window: of neighbouring pixels at once where all are inside."""

            def each() -> None:
                with T.serial(shape.kernel[1]) as kx:
                    source_x = let(first + kx * shape.dilation[1])
                    to = let(ky * span + kx * channels)
                    _if_inside(
                        source_x,
                        self.width,
                        lambda: _copy(
                            self.row, (), to, self.x, (image, source_y, source_x), 0, channels
                        ),
                        lambda: _fill(self.row, (), to, channels, 0.0),
                    )

            if shape.dilation[1] != 1:
                each()
                return
            with T.If(tirx.all(first >= 0, first + shape.kernel[1] <= self.width)):
                with T.Then():
                    _copy(self.row, (), ky * span, self.x, (image, source_y, first), 0, span)
                with T.Else():
                    each()

        with T.serial(shape.kernel[0]) as ky:
            source_y = let(y * shape.strides[0] + ky * shape.dilation[0] - shape.padding[0])
            _if_inside(
                source_y,
                self.height,
                lambda: pixels(ky, source_y),
                lambda: _fill(self.row, (), ky * span, span, 0.0),
            )

    def load(self, row: Expr, start: Expr, lanes: int, valid: int) -> Expr:
        if valid == 0:
            return splat(0.0, "float32", lanes)
        return self.row[at(start, lanes)]


@dataclass(frozen=True)
class Gathered:
    """One operand of a GEMM, `width` elements of it a pixel; None: one number that says what is
    unusual in a row, of which a window has that of all its pixels.
    """

    dtype: str
    stride: int
    width: int | None
    row_stride: int
    padding: float = 0.0


def gathered_operands(kernel: Any, channels: int, k: int) -> list[Gathered] | None:
    """How a window's operands for `kernel` are put together from those of its pixels; None where
    they are not: blocks that two pixels share, or scales of a whole row.
    """
    fmt = kernel.act
    if fmt.has_tensor_scale or channels % fmt.block:
        return None
    pixel, row = kernel.quantized_specs(channels), kernel.quantized_specs(k)
    strides = [(shape[0], whole[0]) for (shape, _), (whole, _) in zip(pixel, row, strict=True)]
    kinds: list[tuple[str, int | None, float]] = [("float32", channels, 0.0)]
    if kernel.takes_pairs:
        scale_of_zeros = 1.0
        kinds = [
            ("int32", channels // 2, 0.0),
            ("float32", channels // fmt.block, scale_of_zeros),
            ("int32", None, 0.0),
        ]
    if kernel.is_integer:
        scale_of_zeros = 1 / (divisor(fmt.element) * divisor(kernel.weight.element))
        kinds = [
            ("int8", channels, 0.0),
            ("float32", channels // fmt.block, scale_of_zeros),
            ("int32", channels // kernel.block, 0.0),
            ("int32", None, 0.0),
        ]
    return [
        Gathered(dtype, stride, width, row_stride, padding)
        for (dtype, width, padding), (stride, row_stride) in zip(kinds, strides, strict=False)
    ]


def gather_windows(shape: WindowShape, operands: Sequence[Gathered]) -> Any:
    """PrimFunc(of pixels (N, H, W, stride).., of windows (M, row_stride)..)."""
    with kernel() as builder:
        n, height, width, m = (tirx.Var(name, "int64") for name in ("n", "h", "w", "m"))
        pixels = [
            T.arg(f"pixels{i}", T.buffer((n, height, width, operand.stride), operand.dtype))
            for i, operand in enumerate(operands)
        ]
        rows = [
            T.arg(f"rows{i}", T.buffer((m, operand.row_stride), operand.dtype))
            for i, operand in enumerate(operands)
        ]
        with root_block():
            _emit_gather(shape, operands, pixels, rows, (n, height, width))
    return builder.get()


def _emit_gather(
    shape: WindowShape,
    operands: Sequence[Gathered],
    pixels: Sequence[Any],
    rows: Sequence[Any],
    extents: tuple[Expr, Expr, Expr],
) -> None:
    n, height, width = extents
    down, across = shape.counts(height, width)
    everything = list(zip(operands, pixels, rows, strict=True))
    with T.parallel(n * down) as line, T.serial(across) as x:
        IRBuilder.name("line", line)
        image, y = let(line // down), let(line % down)
        row = let(line * across + x)
        for operand, _, to in everything:
            if operand.width is None:
                T.buffer_store(to, tirx.const(0, operand.dtype), [row, 0])
        with T.serial(shape.kernel[0]) as ky, T.serial(shape.kernel[1]) as kx:
            source_y = let(y * shape.strides[0] + ky * shape.dilation[0] - shape.padding[0])
            source_x = let(x * shape.strides[1] + kx * shape.dilation[1] - shape.padding[1])
            number = let(ky * shape.kernel[1] + kx)

            def copy() -> None:
                place = (image, source_y, source_x)
                for operand, source, to in everything:
                    if operand.width is None:
                        T.buffer_store(to, to[row, 0] | source[(*place, 0)], [row, 0])
                    else:
                        start = number * operand.width
                        _copy(to, (row,), start, source, place, 0, operand.width)

            def fill() -> None:
                for operand, _, to in everything:
                    if operand.width is not None:
                        start = number * operand.width
                        _fill(to, (row,), start, operand.width, operand.padding)

            is_inside = tirx.all(_inside(source_y, height), _inside(source_x, width))
            with T.If(is_inside):
                with T.Then():
                    copy()
                with T.Else():
                    fill()


def _inside(index: Expr, extent: Expr) -> Expr:
    return tirx.all(index >= 0, index < extent)


def _if_inside(index: Expr, extent: Expr, yes: Callable[[], None], no: Callable[[], None]) -> None:
    with T.If(_inside(index, extent)):
        with T.Then():
            yes()
        with T.Else():
            no()


def _copy(
    to: Any,
    to_row: Sequence[Expr],
    start: Expr,
    source: Any,
    row: Sequence[Expr],
    first: int,
    count: int,
) -> None:
    """`count` elements, in the widest vectors that fit."""

    def vector(offset: Expr, lanes: int) -> None:
        value = source[(*row, at(first + offset, lanes))]
        T.buffer_store(to, value, [*to_row, at(start + offset, lanes)])

    _each_vector(to, count, vector)


def _fill(to: Any, row: Sequence[Expr], start: Expr, count: int, value: float) -> None:
    dtype = str(to.dtype)

    def vector(offset: Expr, lanes: int) -> None:
        constant = tirx.const(int(value) if dtype.startswith("int") else value, dtype)
        T.buffer_store(to, splat(constant, dtype, lanes), [*row, at(start + offset, lanes)])

    _each_vector(to, count, vector)


def _each_vector(to: Any, count: int, emit: Callable[[Expr, int], None]) -> None:
    widest = LINE // (1 if str(to.dtype).endswith("int8") else 4)
    whole, done = count // widest, 0
    if whole > UNROLLED:
        with T.serial(whole) as i:
            emit(i * widest, widest)
        done = whole * widest
    lanes = widest
    while lanes:
        while count - done >= lanes:
            emit(done, lanes)
            done += lanes
        lanes //= 2
