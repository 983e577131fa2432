"""Exact trace moments of a real Gaussian matrix, the yardstick of every comparison here."""

import math
from functools import lru_cache
from itertools import accumulate
from operator import mul

import numpy as np

from jaxprune import validation


def _products(factors, one=1) -> list:
    """`[1, f_1, f_1 f_2, ...]`."""
    return list(accumulate(factors, mul, initial=one))


@lru_cache(maxsize=4096)
def log_trace_moment(n: int, m: int, p: int) -> float:
    """`log E tr (G Gᵀ)^p` of an n x m matrix G of independent standard normal entries.

    With zonal polynomials Z_λ, `tr S^p = Σ_λ (2 p θ_λ / j_λ) Z_λ(S)` and `E Z_λ(G Gᵀ) = z_λ(n)
    z_λ(m)`, so that, over the partitions λ of p and with boxes (i, j) counted from 0,

        E tr (G Gᵀ)^p = Σ_λ (2 p θ_λ / j_λ) z_λ(n) z_λ(m),    z_λ(n) = ∏ (n + 2j - i),
        θ_λ = ∏_{(i,j) ≠ (0,0)} (2j - i),    j_λ = ∏ (2 arm + leg + 1)(2 arm + leg + 2).

    θ_λ vanishes if λ contains the box (2, 1): only `λ = (a, b, 1, ..., 1)` counts, p²/4 terms.
    Their signs alternate and cancel more digits than float64 has, hence whole numbers.

    References: P. J. Hanlon, R. P. Stanley, J. R. Stembridge, Some combinatorial aspects of the
    spectra of normally distributed random matrices, Contemp. Math. 138 (1992); I. G. Macdonald,
    Symmetric Functions and Hall Polynomials, 2nd ed., chapters VI.10 (θ, j) and VII (E Z_λ).
    """
    n, m, p = (validation.integer(k, v, 1) for k, v in (("n", n), ("m", m), ("p", p)))
    shift = 256  # guard bits: every term is cut to a multiple of 2^-256
    columns = _zonal_values(m, p)
    total = sum(
        (numerator * z * columns[shape] << shift) // denominator
        for (shape, z), (numerator, denominator) in zip(
            _zonal_values(n, p).items(), _zonal_coefficients(p).values(), strict=True
        )
    )
    return math.log(total) - shift * math.log(2.0)


@lru_cache(maxsize=64)
def log_shape_counts(p: int) -> np.ndarray:
    """Logarithms of the whole numbers c in `E tr (G Gᵀ)^p = Σ c[u, v] (n)_u (m)_v`, all n and m.

    c[u, v] adds up `∏ (2k_e - 1)!!` over the shapes of closed walks with u rows and v columns
    that use edge e `2k_e` times (README, theorem 1); it vanishes unless u, v >= 1, u + v <= p + 1.
    Read off by differences: `c[u, v] = Δ_n^u Δ_m^v E tr (G Gᵀ)^p / (u! v!)` at n = m = 0.

    Returns:
      `(p + 1, p + 1)`, symmetric; -inf where c vanishes.
    """
    sizes = np.arange(p + 1).astype(object)
    shift = 2 * p * (3 * p).bit_length() + 64  # |z(n) z(m)| < (3p)^(2p): terms are cut below 2^-64
    table = np.zeros((p + 1, p + 1), object)
    coefficients = _zonal_coefficients(p)
    for shape, z in _zonal_values(sizes, p).items():
        numerator, denominator = coefficients[shape]
        scaled = z * ((numerator << shift) // denominator)
        for n in range(1, (p + 1) // 2 + 1):  # n <= m and n + m <= p + 1 are enough
            if scaled[n]:
                table[n, n : p + 2 - n] += scaled[n] * z[n : p + 2 - n]
    table = (table + (1 << (shift - 1))) >> shift
    table = np.triu(table) + np.triu(table, 1).T
    for _ in range(2):
        for order in range(1, p + 1):
            table[order:] = table[order:] - table[order - 1 : -1]
        table = table.T
    factorials = np.array(_products(range(1, p + 1)), object)
    counts = table // np.outer(factorials, factorials)
    u = np.arange(p + 1)
    counts[np.add.outer(u, u) > p + 1] = 0  # the table was not filled there
    return np.array([[math.log(c) if c else -math.inf for c in row] for row in counts])


def _zonal_values(n, p) -> dict:
    """z_λ(n) by `(a, b)` of λ = (a, b, 1, ..., 1); n is a number or an object array of them."""
    one = n**0
    first = _products((n + 2 * j for j in range(p)), one)
    second = _products((n + 2 * j - 1 for j in range(p)), one)
    column = _products((n - i for i in range(2, p)), one)
    return {(a, b): first[a] * second[b] * column[p - a - b] for a, b in _partitions(p)}


@lru_cache(maxsize=64)
def _zonal_coefficients(p) -> dict:
    """Numerator and denominator of `2 p θ_λ / j_λ` by `(a, b)` of λ = (a, b, 1, ..., 1)."""
    theta_first = [1, *_products(2 * j for j in range(1, p))]
    theta_second = _products(2 * j - 1 for j in range(p))
    theta_column = _products(-i for i in range(2, p))
    # Hook factors of boxes whose arm or leg runs down to 0, by its length: h_leg[x] is the product
    # over arms 0..x-1 at that leg, h_column[x] over legs 0..x-1 at arm 0.
    h_0 = _products((2 * a + 1) * (2 * a + 2) for a in range(p))
    h_1 = _products((2 * a + 2) * (2 * a + 3) for a in range(p))
    h_column = _products((leg + 1) * (leg + 2) for leg in range(p))

    def hook(arm, leg):
        return (2 * arm + leg + 1) * (2 * arm + leg + 2)

    coefficients = {}
    for a, b in _partitions(p):
        c = p - a - b
        theta = theta_first[a] * theta_second[b] * theta_column[c]
        j = h_0[a]
        if b > 0:
            row_1 = hook(a - 1, c + 1) * h_0[a - b] * h_1[a - 1] // h_1[a - b]
            j = row_1 * hook(b - 1, c) * h_0[b - 1] * h_column[c]
        coefficients[a, b] = 2 * p * theta, j
    return coefficients


def _partitions(p):
    """`(a, b)` of the partitions (a, b, 1, ..., 1) of p."""
    return [(p, 0), *((a, b) for b in range(1, p // 2 + 1) for a in range(b, p - b + 1))]


def log_trace_moment_estimate(n, m, p: int) -> np.ndarray:
    """`log E tr (C C*)^p` of complex Gaussian n x m matrices: close to the real moment, and cheap.

    Serves to choose among candidates, never as a bound. U. Haagerup, S. Thorbjørnsen, Random
    matrices with complex Gaussian entries, Expo. Math. 21 (2003): the recursion in p.

    Args:
      n: `(...)` rows.
      m: `(...)` columns.
      p: the order.
    """
    n, m = np.asarray(n, np.float64), np.asarray(m, np.float64)
    ratio = np.maximum(n, m)
    log_moment = np.log(np.minimum(n, m)) + np.log(ratio)
    for k in range(1, p):
        step = (2 * k + 1) * (n + m) + (k - 1) * (k**2 - (n - m) ** 2) / ratio
        ratio = step / (k + 2)
        log_moment = log_moment + np.log(ratio)
    return log_moment
