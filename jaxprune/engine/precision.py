"""Every product of floats in full precision, on every device, and a check that it is so.

An accelerator's default is TF32 or bfloat16, of which a CPU shows nothing: distances would be off
by a thousandth, and the guard band is a tenth of that.
"""

import re

from jaxprune.types import BrokenInvariant

FULL = "highest"
"""What `jax.default_matmul_precision` is while programs are traced."""

_PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution|dot)\b.*")
_HIGHEST = re.compile(r"precision = \[HIGHEST, HIGHEST\]|(?:precision HIGHEST>[^>]*){2}")
_BELOW = re.compile(r"x(?:bf16|f16|f8\w*)>")
_FLOAT32 = re.compile(r"(?:x|<)f32>")


def check_products(program: str) -> int:
    """Counts the products of a lowered program.

    Args:
      program: StableHLO text.

    Raises:
      BrokenInvariant: a product of float32 numbers that may be computed in less precision, or of
        numbers that have less.
    """
    products = _PRODUCT.findall(program)
    for line in products:
        operands = line.rpartition(" : ")[2].partition("->")[0]
        if _BELOW.search(operands) or (_FLOAT32.search(operands) and not _HIGHEST.search(line)):
            raise BrokenInvariant(f"a product below float32's precision: {line[:200]}")
    return len(products)
