"""What a model loses: the figure of a divergence that is to be small, and how it is said.

| judged by | cost | said as |
|---|---|---|
| logits | KL of a token to the float model | nats a token |
| other outputs, or any under `--min-qsnr` | noise over signal of the worst output | QSNR, dB |
"""

from collections.abc import Mapping

from lbcompiler.decisions.measure import Divergence

BY_NOISE = "min_qsnr"  # the budget that looks at no KL


def cost_of(divergence: Divergence, budget: str = "") -> float:
    """What is to be small under a budget, "" for none."""
    return divergence.noise if budget == BY_NOISE else divergence.cost


def compared(found: Mapping[str, Divergence], budget: str = "") -> str:
    """`the model's KL in nats a token is 0.84 with all rounded to nearest, 0.23 with ..`, by how
    the model was measured.
    """
    by_noise = budget == BY_NOISE or any(d.kl is None for d in found.values())
    figures = {how: d.qsnr_db if by_noise else d.cost for how, d in found.items()}
    said = ", ".join(f"{figure:.4g} {how}" for how, figure in figures.items())
    return f"the model's {'QSNR in dB' if by_noise else 'KL in nats a token'} is {said}"


def alone_name(sensitivity: str, with_kl: bool) -> str:
    """What a group's cost alone is, by `--sensitivity` and whether the KL counts."""
    if sensitivity == "output":
        return "relative error of its own output"
    what = "KL of the model, nats a token" if with_kl else "noise over signal of the worst output"
    return f"{what}, by gradients" if sensitivity == "fisher" else what
