"""MXINT4: 32 integers -7..7 share one power-of-two scale (arXiv 2510.25602, table 1).

`mse` is worth 1.9 dB over `rceil` on Gaussian data here, more than on any other format."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import INT4

MXINT4 = BlockFormat(name="mxint4", element=INT4, scale="e8m0", block=32)
