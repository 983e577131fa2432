"""Every product of floats in full precision, on every device, and a check that it is so.

An accelerator's default is TF32 or bfloat16, of which a CPU shows nothing: distances would be off
by a thousandth, and the guard band is a tenth of that.
"""

import re

from jaxprune.types import BrokenInvariant

FULL = "highest"
"""What `jax.default_matmul_precision` is while programs are traced."""

_PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution|dot)\b.*")
_EXACT = re.compile(
    r"precision = \[HIGHEST, HIGHEST\]|(?:precision HIGHEST>[^>]*){2}|xf64>|complex<f64>"
)


def check_products(program: str) -> int:
    """Counts the products of a lowered program.

    Args:
      program: StableHLO text.

    Raises:
      BrokenInvariant: a product of float32 numbers that may be computed in less precision.
    """
    products = _PRODUCT.findall(program)
    for line in products:
        operands = line.rpartition(" : ")[2]
        if not _EXACT.search(line) and re.search(r"f32|bf16|f16", operands):
            raise BrokenInvariant(f"a product below float32's precision: {line[:200]}")
    return len(products)
