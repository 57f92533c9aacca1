"""NVFP4: 16 E2M1 values share an E4M3 scale under a tensor scale (NVIDIA, arXiv 2509.25149)."""

from lbcompiler.formats.block_format import BlockFormat
from lbcompiler.formats.elements import E2M1

NVFP4 = BlockFormat(name="nvfp4", element=E2M1, scale="e4m3", block=16)
