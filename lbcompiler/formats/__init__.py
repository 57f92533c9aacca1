"""Block-scaled formats: the table FORMATS, and the numpy reference of each."""

from lbcompiler.errors import ConfigError
from lbcompiler.formats.block_format import BlockFormat, Quantized
from lbcompiler.formats.elements import Element
from lbcompiler.formats.mxfp4 import MXFP4
from lbcompiler.formats.mxfp6 import MXFP6
from lbcompiler.formats.mxfp6_e3m2 import MXFP6_E3M2
from lbcompiler.formats.mxfp8 import MXFP8
from lbcompiler.formats.mxfp8_e5m2 import MXFP8_E5M2
from lbcompiler.formats.mxint4 import MXINT4
from lbcompiler.formats.mxint6 import MXINT6
from lbcompiler.formats.mxint8 import MXINT8
from lbcompiler.formats.nvfp4 import NVFP4
from lbcompiler.formats.nvint4 import NVINT4
from lbcompiler.formats.scales import decode_scales
from lbcompiler.formats.table import row

_ALL = (
    MXINT8,
    MXINT6,
    MXINT4,
    MXFP8,
    MXFP8_E5M2,
    MXFP6,
    MXFP6_E3M2,
    MXFP4,
    NVINT4,
    NVFP4,
)
FORMATS: dict[str, BlockFormat] = {fmt.name: fmt for fmt in _ALL}


def format_named(name: str) -> BlockFormat:
    """The format of that name. Raises ConfigError that lists the names."""
    if name not in FORMATS:
        raise ConfigError(f"There is no format {name!r}; choose one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def stored_format(name: str) -> BlockFormat:
    """`format_named`, or the format of that name that weights alone are stored in: an MX format
    with a tensor scale.
    """
    plain = name.removesuffix("_scaled")
    return format_named(name) if plain == name else format_named(plain).scaled


def table() -> list[dict[str, object]]:
    """A row of facts for every format, in the order of FORMATS."""
    return [row(fmt) for fmt in FORMATS.values()]


__all__ = [
    "FORMATS",
    "BlockFormat",
    "Element",
    "Quantized",
    "decode_scales",
    "format_named",
    "stored_format",
    "table",
]
