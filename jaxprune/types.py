"""Names that several rooms of the package share.

Letters in shapes, everywhere: `l` layers, `d` features, `c` channels, `n` inputs, `k` kernel side.
"""

from typing import NamedTuple

import jax

Key = jax.Array
"""A typed `threefry2x32` key."""

Params = tuple[jax.Array, ...]
"""One weight array a layer: `(d_out, d_in)` for dense, `(c_out, c_in, k, k)` for convolution."""


class Gap(NamedTuple):
    """A bracket of the gap of one pair: `lower <= sup ||F(x) - f(x)|| <= upper`.

    Attributes:
      lower: `()` at most the distance at one input of the domain, a theorem in floating point.
      upper: `()` a theorem in floating point, too. With tanh and erf both rest on the accuracy of
        those functions, which is tested and not proved (`Activation`).
    """

    lower: jax.Array
    upper: jax.Array


class BrokenInvariant(RuntimeError):
    """Something that cannot be: the code, the compiler or the machine is wrong."""
