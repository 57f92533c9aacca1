"""MXFP6: 32 E2M3 values, up to 7.5, share one power-of-two scale (OCP MX v1.0, section 5.3)."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import E2M3

MXFP6 = BlockFormat(name="mxfp6", element=E2M3, scale="e8m0", block=32)
