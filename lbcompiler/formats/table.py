"""The table of formats that `lbc formats` prints: plain data, so that it can be JSON as well."""

from lbcompiler.formats.block_format import BlockFormat


def row(fmt: BlockFormat) -> dict[str, object]:
    """One format's facts: numbers as numbers, names as strings."""
    return {
        "name": fmt.name,
        "bits_per_element": fmt.bits_per_element,
        "block": fmt.block,
        "element": fmt.element.name,
        "element_bits": fmt.element.bits,
        "element_max": fmt.element.max,
        "element_smallest": fmt.element.smallest,
        "scale": fmt.scale,
        "tensor_scale": "float32" if fmt.has_tensor_scale else "none",
        "rules": list(fmt.rules),
        "default_rule": fmt.default_rule,
    }
