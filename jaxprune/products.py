"""The linear maps of layers, and their gradients, in the forms that a CPU is fast at."""

import functools

import jax
import jax.numpy as jnp

DIRECT_CHANNELS = 8
"""From so many input channels on, a CPU is faster at a convolution than at gathered patches."""


def _on_cpu():
    return jax.default_backend() == "cpu"


@jax.custom_vjp
def product(w: jax.Array, x: jax.Array) -> jax.Array:
    """`W x` over the first axis of x; reverse-mode derivatives only."""
    return jnp.tensordot(w, x, 1, precision=jax.lax.Precision.HIGHEST)


def _pull_product(wx, u):
    w, x = wx
    # On a CPU a product that sums over the first axis of W takes up to 14 times as long as this
    # one, and without barriers XLA would make that of it.
    hold = jax.lax.optimization_barrier if _on_cpu() else lambda y: y
    columns = tuple(range(1, u.ndim))
    of_w = jnp.tensordot(u, x, (columns, columns), precision=jax.lax.Precision.HIGHEST)
    return of_w, hold(product(hold(u.T), w)).T


product.defvjp(lambda w, x: (product(w, x), (w, x)), _pull_product)


def correlate(stride: int, pads: tuple[int, int], w: jax.Array, x: jax.Array) -> jax.Array:
    """Cross-correlation of images with one kernel; reverse-mode derivatives only.

    Args:
      stride: along both sides.
      pads: zeros before and after, along both sides.
      w: `(c_out, c_in, k, k)`.
      x: `(c_in, h, w, n)`.

    Returns:
      `(c_out, rows, columns, n)`.
    """
    # XLA's convolution of float64 is a plain loop on a CPU.
    direct = w.shape[1] >= DIRECT_CHANNELS and w.dtype == x.dtype == jnp.float32 and _on_cpu()
    return (_by_convolution if direct else _by_patches)(stride, pads, w, x)


def _by_patches(stride, pads, w, x):
    """One matrix product over gathered patches: under vmap over kernels it stays a batched
    product, where a convolution would become a slow grouped one."""
    c_out, _, kernel, _ = w.shape
    x = jnp.pad(x, [(0, 0), pads, pads, (0, 0)])
    rows, columns = (side - kernel + 1 for side in x.shape[1:3])
    patches = jnp.concatenate(
        [
            x[:, i : i + rows : stride, j : j + columns : stride]
            for i in range(kernel)
            for j in range(kernel)
        ]
    )
    return product(jnp.moveaxis(w, 1, 3).reshape(c_out, -1), patches)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_convolution(stride, pads, w, x):
    """XLA's convolution, of one kernel after another where `vmap` would group them, slowly."""
    return _channels_last(w, x, stride=stride, pads=[pads] * 2)


def _channels_last(w, x, *, stride=1, pads, dilation=1):
    """The one layout in which XLA's convolution is fast on a CPU."""

    @jax.custom_batching.sequential_vmap
    def one(w, x):
        y = jax.lax.conv_general_dilated(
            jnp.transpose(x, (3, 1, 2, 0)),
            jnp.transpose(w, (2, 3, 1, 0)),
            (stride, stride),
            pads,
            (dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.transpose(y, (3, 1, 2, 0))

    return one(w, x)


def _pull_convolution(stride, pads, wx, u):
    # XLA's own gradients leave the fast layout.
    w, x = wx
    before = w.shape[2] - 1 - pads[0]
    spans = [stride * (side - 1) + 1 for side in u.shape[1:3]]
    beyond = [side + pads[0] - span for side, span in zip(x.shape[1:3], spans, strict=True)]
    turned = jnp.flip(jnp.swapaxes(w, 0, 1), (2, 3))
    of_x = _channels_last(turned, u, pads=[(before, after) for after in beyond], dilation=stride)
    _, pull = jax.vjp(lambda w: _by_patches(stride, pads, w, x), w)
    return *pull(u), of_x


_by_convolution.defvjp(
    lambda stride, pads, w, x: (_by_convolution(stride, pads, w, x), (w, x)), _pull_convolution
)
