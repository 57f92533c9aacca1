"""How ops become PrimFuncs for a GPU: as for a CPU where those are independent loops."""

from lbcompiler.targets.cpu import legalize as cpu
from lbcompiler.targets.cpu.legalization import Legalization
from lbcompiler.targets.cuda.attention import legalize_attention
from lbcompiler.targets.cuda.hadamard import legalize_hadamard

KEPT = cpu.KEPT

LEGALIZATIONS: dict[str, Legalization] = {
    **cpu.LEGALIZATIONS,
    "lbc.attention": legalize_attention,
    "lbc.hadamard": legalize_hadamard,
}
