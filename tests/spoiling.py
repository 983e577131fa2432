"""Results that lack a value, or have another in its place: refused in one line, or shown."""

from jaxprune import report
from jaxprune.report import reading

NASTY = [
    *(None, True, -1, 2**70, 1e308, 10**400, 0, 0.5, 1e-320, 1e99, 10**11, 99.0),
    *("x", "\x1b[31m", "[/x]", r"$\foo$", "_x", "\ud800", [], {}, [[]]),
]


def spoiled(rng, value):
    """A copy in which one value, somewhere, is another, or is not there."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {other: value[other] for other in value if other != key}
        return value | {key: spoiled(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.95:
        i = rng.randrange(len(value))
        return [*value[:i], spoiled(rng, value[i]), *value[i + 1 :]]
    return rng.choice(NASTY)


def outcomes(rng, results, times):
    """How many of so many spoiled results were refused, and how many have a page."""
    found = {"refused": 0, "shown": 0}
    for i in range(times):
        result = spoiled(rng, results[i % len(results)])
        try:
            reading.check(result)
        except ValueError as error:
            assert "\n" not in str(error)
            found["refused"] += 1
        else:
            report.page(result)
            found["shown"] += 1
    return found
