"""The whole trial of `UnitBall` in batched torch: samples, ascent, multiplier bound.

The same algorithm as `jaxprune.gaps` for dense networks of three layers with the middle one pruned
and ReLU, with gradients by hand, a leading axis of trials everywhere and nothing else in it. Left
out, none of it a fiftieth of the value or of the cost: powers of two as units, subnormal numbers,
the fallback for a form that no multiplier bounds, the target's outputs.
"""

import math

import torch

from peers import SAMPLES, STARTS, STEPS

WARM, WARM_STEPS, PATIENCE, GROWTH = 8, 3, 4, 1e-5
MARGINS, MARGIN, PROBES = (0.6, 0.4), 0.3, 32
GUESSES = (1.002, 1.01, 1.05, 1.3)
TINY = 1e-30


def make(workload, draw, place):
    """`batch(source) -> (sampled, lower, upper)`, each `(size,)`."""
    d = workload.width
    signs = torch.randint(0, 2, (d, PROBES), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    probes = torch.eye(d) if d <= PROBES else signs
    probes = probes.to(place)

    def batch(source):
        w, kept = draw(source)
        w1, w2, w3 = w
        p = w2 - kept[0]
        x = torch.randn((len(p), SAMPLES, d), generator=source, device=place)
        x /= _lengths(x)
        weights = w1, torch.cat([w2, p], 1), w3
        values = _lengths(_forward(weights, x)[0])[..., 0]
        sampled = values.amax(1)
        lower = torch.maximum(sampled, _ascent(weights, p, x, values))
        return sampled, lower, _bound(w1, p, w3, probes)

    return batch


# --- ascent --------------------------------------------------------------------------------------


def _lengths(d):
    return torch.linalg.vector_norm(d, dim=-1, keepdim=True)


def _unit(g):
    return g / _lengths(g).clamp_min(TINY)


def _forward(weights, x):
    """Differences `(B, n, d)` at the rows of x, with what their gradient needs."""
    w1, both, w3 = weights
    h = torch.bmm(x, w1.mT).relu_()
    a, lost = torch.bmm(h, both.mT).chunk(2, -1)
    b = a - lost
    return torch.bmm(a.relu() - b.relu(), w3.mT), h, a, b


def _gradient(weights, d, h, a, b):
    w1, both, w3 = weights
    back = torch.bmm(d, w3)
    kept = back * (b > 0)
    g = torch.bmm(torch.cat([back * (a > 0) - kept, kept], -1), both)
    return torch.bmm(g * (h > 0), w1)


def _best(x, values, n):
    return x.gather(1, values.topk(n, 1).indices[..., None].expand(-1, -1, x.shape[-1]))


def _ascent(weights, p, x, values):
    """The largest length met: a warm start among eight, momentum, power iteration for a fourth."""
    few = STARTS // 8
    w1, _, w3 = weights
    warm = _best(x, values, WARM)
    for _ in range(WARM_STEPS):
        for factor in (w1.mT, p.mT, w3.mT, w3, p, w1):
            warm = torch.bmm(warm, factor)
        warm = _unit(warm)
    warm = torch.cat([warm, -warm], 1)
    warm = _best(warm, _lengths(_forward(weights, warm)[0])[..., 0], few)
    x = torch.cat([_best(x, values, STARTS - few), warm], 1)
    best = torch.zeros_like(values[:, 0])
    mark, since, trace = best, torch.zeros_like(best), torch.zeros_like(x)
    for i in range(STEPS):
        d, *state = _forward(weights, x)
        best = torch.maximum(best, _lengths(d)[..., 0].amax(1))
        gained = best > mark * (1 + GROWTH)
        mark, since = torch.where(gained, best, mark), torch.where(gained, 0, since + 1)
        if bool((since >= PATIENCE).all()):
            return best
        uphill = _unit(_gradient(weights, d, *state))
        trace = uphill + 0.5 * trace
        x = x + 0.15 * (1 + math.cos(math.pi * i / STEPS)) * trace
        x = x / _lengths(x).clamp_min(1)
        x[:, ::4] = uphill[:, ::4]
    return torch.maximum(best, _lengths(_forward(weights, x)[0])[..., 0].amax(1))


# --- upper bound ---------------------------------------------------------------------------------


def _growth(length):
    return 8 * (length + 2) * 2.0**-53


def _level(form):
    return form.diagonal(dim1=-2, dim2=-1).amax(-1)


def _in_units(form, units):
    return form / (units[:, :, None] * units[:, None, :])


def _eye(form):
    return torch.eye(form.shape[-1], dtype=form.dtype, device=form.device)


def _frobenius(a):
    return torch.linalg.matrix_norm(a) * (1 + _growth(a.shape[-1] * a.shape[-2]))


def _estimate(form, steps):
    """About the largest eigenvalue, by Lanczos."""
    steps = min(steps, form.shape[-1])
    start = torch.arange(1, form.shape[-1] + 1, dtype=form.dtype, device=form.device).square().cos()
    v = (start / start.norm()).expand(len(form), -1).unsqueeze(-1)
    before, beta = torch.zeros_like(v), v.new_zeros(len(form), 1, 1)
    alphas, betas = [], []
    for _ in range(steps):
        u = torch.baddbmm(beta * before, form, v, beta=-1)
        alpha = (v * u).sum(1, keepdim=True)
        u = u - alpha * v
        beta = torch.linalg.vector_norm(u, dim=1, keepdim=True)
        beta = torch.where(beta <= 1e-13 * alpha.abs(), 0, beta)
        before, v = v, u / torch.where(beta > 0, beta, math.inf)
        alphas.append(alpha[:, 0, 0])
        betas.append(beta[:, 0, 0])
    tridiagonal = torch.diag_embed(torch.stack(alphas, 1))
    tridiagonal += torch.diag_embed(torch.stack(betas[:-1], 1), -1)
    return torch.linalg.eigvalsh(tridiagonal)[:, -1]


def _proved(form):
    """At least the largest eigenvalue, by a Cholesky factor."""
    n, estimate = form.shape[-1], _estimate(form, 24)
    least = _frobenius(form)
    open_ = torch.ones_like(least, dtype=torch.bool)
    for guess in GUESSES:
        top = guess * estimate
        failed = torch.linalg.cholesky_ex(top[:, None, None] * _eye(form) - form).info != 0
        least = torch.where(open_ & ~failed, top * (1 + n * _growth(n)), least)
        open_ = open_ & failed
        if not bool(open_.any()):
            break
    return least


def _bound(w1, p, w3, probes):
    """At least the gap of each pair: the form of the output, then through both activations."""
    w1, p, w3 = (a.double() for a in (w1, p, w3))
    form = w3.mT @ w3
    form = _plus(form, _growth(w3.shape[-1]) * _frobenius(w3).square())
    for matrix, t in zip((p, w1), _tuned(form, (p, w1), probes), strict=True):
        t = t.double() * _level(form)[:, None]
        top = _estimate(_in_units(form, t.sqrt()), 12)
        units = (t * ((1 + MARGIN) * top).clamp_min(1)[:, None]).sqrt()
        form = _through(form, matrix, units)
    return _proved(form).sqrt().mul(1 + 2.0**-22).float()


def _plus(form, slack):
    return form + slack[:, None, None] * (1 + 1e-12) * _eye(form)


def _through(form, matrix, units):
    """`y^T (1 - Q)^-1 y / 4` in units in which the multipliers are 1, and its rounding."""
    n = form.shape[-1]
    matrix, form = units[:, :, None] * matrix, _in_units(form, units)
    size, room = _frobenius(matrix), max(1e-9, 4 * n * _growth(n))
    lower = torch.linalg.cholesky((1 - room) * _eye(form) - form)
    right = 0.5 * matrix
    y = torch.linalg.solve_triangular(lower, right, upper=False)
    residual = _frobenius(torch.baddbmm(right, lower, y, alpha=-1))
    residual = residual + 2 * _growth(n) * _frobenius(lower) * _frobenius(y) + 2.0**-50 * size
    slack = _growth(n) * _frobenius(y).square() + 2 * residual.square() / room
    product = y.mT @ y
    return _plus(0.5 * (product + product.mT), slack)


def _tuned(form, matrices, probes):
    """Multipliers `(B, n)` of the neurons behind each matrix, in float32."""
    form = (form / _level(form)[:, None, None]).float()
    matrices = [m.float() for m in matrices]
    multipliers = None
    for margin in MARGINS:
        q, factors = form, []
        for i, m in enumerate(matrices):
            q = q / _level(q)[:, None, None]
            t = multipliers[i] if multipliers else _start(q, m)
            raised = (1 + margin) * _estimate(_in_units(q, t.sqrt()), 12)
            units = (t * (raised.clamp_min(1) if multipliers else raised)[:, None]).sqrt()
            lower = torch.linalg.cholesky_ex(_eye(q) - _in_units(q, units)).L
            m = units[:, :, None] * m
            y = torch.linalg.solve_triangular(lower, 0.5 * m, upper=False)
            q = y.mT @ y
            factors.append((lower, y, m, units))
        x = probes.expand(len(q), -1, -1)
        q = q / _level(q)[:, None, None]
        for _ in range(4):
            x = q @ x
            x = x / x.abs().amax((1, 2), keepdim=True)
        better = []
        for lower, y, m, units in reversed(factors):
            z, v = m @ x, torch.linalg.solve_triangular(lower.mT, y @ x, upper=True)
            square = v.square().sum(2)
            ratio = square / torch.maximum((v * z).sum(2), 1e-3 * square + TINY)
            better.append(units.square() * ratio.clamp(0.5, 2).sqrt())
            x = v / units[:, :, None]
            x = x / x.abs().amax((1, 2), keepdim=True)
        multipliers = better[::-1]
    return [torch.where(t.isfinite() & (t > 0), t, 1.0) for t in multipliers]


def _start(form, matrix):
    """`sqrt(Q_ii) / |m_i|`."""
    d, rows = form.diagonal(dim1=-2, dim2=-1), matrix.square().sum(-1)
    d, rows = (torch.maximum(a, 0.1 * a.mean(1, keepdim=True)) for a in (d, rows))
    mean_d, mean_rows = d.mean(1, keepdim=True), rows.mean(1, keepdim=True)
    t = form.diagonal(dim1=-2, dim2=-1).mean(1, keepdim=True)
    t = t * (d / mean_d * mean_rows / rows).sqrt()
    return torch.where(t > 0, t, 1.0)
