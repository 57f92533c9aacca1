"""How ops become PrimFuncs for a GPU: as for a CPU where those are independent loops."""

from lbcompiler.targets.cpu import legalize as cpu
from lbcompiler.targets.cpu.legalization import Legalization
from lbcompiler.targets.cuda import legalize_axis
from lbcompiler.targets.cuda.append import legalize_append
from lbcompiler.targets.cuda.attention import legalize_attention
from lbcompiler.targets.cuda.hadamard import legalize_hadamard

KEPT = cpu.KEPT

LEGALIZATIONS: dict[str, Legalization] = {
    **cpu.LEGALIZATIONS,
    "relax.cumsum": legalize_axis.accumulate(is_sum=True),
    "relax.cumprod": legalize_axis.accumulate(is_sum=False),
    "relax.sort": legalize_axis.sort,
    "relax.argsort": legalize_axis.argsort,
    "relax.topk": legalize_axis.topk,
    "lbc.append": legalize_append,
    "lbc.attention": legalize_attention,
    "lbc.hadamard": legalize_hadamard,
}
