"""Equal steps of the virtual machine become one, and the results stay what they were."""

from collections import Counter
from typing import Any

import numpy as np
import tvm
from tvm import relax

from lbcompiler.ir.rewrite import bindings
from lbcompiler.targets.cpu.build import build
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.threads import set_threads
from lbcompiler.targets.virtual_machine import Built

LAYERS = 6
N = tvm.tirx.Var("n", "int64")


def chain() -> Any:
    """x -> x @ w -> reshaped, back -> .. six times; the values behind the third and the last."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([N, 16], "float32"))
    w = relax.Var("w", relax.TensorType([16, 16], "float32"))
    with builder.function("main", [x, w]):
        with builder.dataflow():
            values = [x]
            for _ in range(LAYERS):
                y = builder.emit(relax.op.matmul(values[-1], w))
                y = builder.emit(relax.op.reshape(y, [N * 2, 8]))
                values.append(builder.emit(relax.op.reshape(y, [N, 16])))
            out = builder.emit_output(relax.Tuple([values[3], values[-1]]))
        builder.emit_func_output(out)
    return builder.get()


def planned() -> tuple[Built, Counter[str]]:
    """The program of the chain, and how often each step stands in it."""
    dumped: dict[str, Any] = {}
    built = build(chain(), detect().tvm_target(), dump=dumped.__setitem__)
    calls = [b.value for b in bindings(dumped["planned"]["main"])]
    ops = [call.op for call in calls if isinstance(call, relax.Call)]
    names = [str(getattr(op, "global_symbol", None) or getattr(op, "name", "")) for op in ops]
    return built, Counter(names)


def test_six_equal_layers_describe_their_tensors_once() -> None:
    built, steps = planned()
    memories = steps["relax.vm.alloc_storage"]
    assert memories < LAYERS
    assert steps["relax.vm.alloc_tensor"] == memories
    assert steps["vm.builtin.reshape"] <= 2 * memories
    assert steps["vm.builtin.make_shape"] <= 4  # (n, 16), (2n, 8), and bytes of a storage
    set_threads(None)
    seed = np.random.default_rng(0)
    x, w = seed.standard_normal((5, 16)), seed.standard_normal((16, 16)) / 4
    given = [tvm.runtime.tensor(array.astype(np.float32)) for array in (x, w)]
    third, last = built.load(tvm.cpu())["main"](*given)
    np.testing.assert_allclose(third.numpy(), x @ w @ w @ w, atol=1e-5)
    np.testing.assert_allclose(last.numpy(), x @ np.linalg.matrix_power(w, LAYERS), atol=1e-5)
