"""What a linear does to its sum before it stores it: the activations, by the names that
`lbc.linear` carries, as device functions.

erff, tanhf and expf are CUDA's own, within 2 units in the last place (CUDA C++ Programming Guide,
"Mathematical Functions"): no fast-math switch is on.
"""

from lbcompiler.targets.cuda.intrinsics import Device, Expr

_BODIES = {
    "relu": "return x < 0.0f ? 0.0f : x;",  # NaN stays
    "gelu": "return x * 0.5f * (1.0f + erff(x * 0.70710678118654752f));",
    "gelu_tanh": "return x * 0.5f * (1.0f + tanhf(0.79788456080286536f * "
    "(x + 0.044715f * x * x * x)));",
    "silu": "return x / (1.0f + expf(-x));",
    "sigmoid": "return 1.0f / (1.0f + expf(-x));",
    "tanh": "return tanhf(x);",
    "hardswish": "float c = x + 3.0f; c = c < 0.0f ? 0.0f : c; c = c > 6.0f ? 6.0f : c; "
    "return x * (c / 6.0f);",
}
EPILOGUES = ("none", *_BODIES)


def activation(name: str, x: Expr) -> Expr:
    """The named activation of a float32."""
    if name == "none":
        return x
    text = f"__device__ __forceinline__ float lb_{name}(float x) {{ {_BODIES[name]} }}"
    return Device(f"lb_{name}", text, "float32")(x)
