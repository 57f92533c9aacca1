"""MXFP4: 32 E2M1 values (0 0.5 1 1.5 2 3 4 6) share one power-of-two scale (OCP MX v1.0, 5.3)."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import E2M1

MXFP4 = BlockFormat(name="mxfp4", element=E2M1, scale="e8m0", block=32)
