"""MXFP8: 32 E4M3 values, up to 448, share one power-of-two scale (OCP MX v1.0, section 5.3)."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import E4M3

MXFP8 = BlockFormat(name="mxfp8", element=E4M3, scale="e8m0", block=32)
