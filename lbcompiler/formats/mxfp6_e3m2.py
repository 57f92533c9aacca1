"""MXFP6 of E3M2: range instead of precision, up to 28 (OCP MX v1.0, section 5.3)."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import E3M2

MXFP6_E3M2 = BlockFormat(name="mxfp6_e3m2", element=E3M2, scale="e8m0", block=32)
