"""MXINT8: 32 integers -127..127 share one power-of-two scale (arXiv 2510.25602, table 1).

OCP MX v1.0 implies a factor of 2^-6 in the element; here the codes are plain integers, and
`packing` moves that factor into the scale byte when bytes cross to or from OCP's layout."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import INT8

MXINT8 = BlockFormat(name="mxint8", element=INT8, scale="e8m0", block=32)
