"""MXINT6: 32 integers -31..31 share one power-of-two scale (arXiv 2510.25602, table 1)."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import INT6

MXINT6 = BlockFormat(name="mxint6", element=INT6, scale="e8m0", block=32)
