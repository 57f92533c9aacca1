"""MXFP8 of E5M2: range instead of precision, up to 57344 (OCP MX v1.0, section 5.3)."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import E5M2

MXFP8_E5M2 = BlockFormat(name="mxfp8_e5m2", element=E5M2, scale="e8m0", block=32)
