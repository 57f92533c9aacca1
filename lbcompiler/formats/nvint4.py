"""NVINT4: 16 integers -7..7 share an E4M3 scale under a tensor scale (arXiv 2510.25602).

`four_over_six` fills a gap of E2M1's grid that integers do not have: it gains nothing here.
"""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import INT4

NVINT4 = BlockFormat(name="nvint4", element=INT4, scale="e4m3", block=16)
