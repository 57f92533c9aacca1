"""What each budget asks of a plan."""

from lbcompiler.decisions.losses import BY_NOISE
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.plan import Plan, Planner
from lbcompiler.errors import ConfigError

HELD_TO = ("max_kl", BY_NOISE)  # what the model may lose, and not what it may take


def within_budget(planner: Planner, what: str, limit: float) -> Plan:
    """The plan under the budget `what`. Raises ConfigError where none keeps within it."""
    table = planner.table
    elements = sum(table.elements.values())
    if what == "effective_bits":
        return planner.within(limit * elements, limit, "bits a weight", elements)
    if what == "max_latency":
        fastest = sum(min(row) for row in table.loads)
        return planner.within(limit * fastest, limit, "times the fastest kernels' time", fastest)
    if what == "max_kl":
        return planner.cheapest(limit, _kl, lambda kl: f"a KL of {kl:.4g} nats a token")
    noise = 10 ** (-limit / 10)
    return planner.cheapest(
        noise, lambda d: d.noise, lambda n: f"a QSNR of {Divergence(n).qsnr_db:.4g} dB"
    )


def _kl(divergence: Divergence) -> float:
    if divergence.kl is None:
        raise ConfigError(
            "--max-kl needs logits, and no output is (batch, length, vocabulary) over an input "
            "named input_ids: use --min-qsnr"
        )
    return divergence.kl
