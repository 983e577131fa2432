"""Tallies as bytes and back: canonical JSON, so that equal tallies are equal bytes.

A tally of one trial is 3 kB of JSON, nearly all of it zeros of exact sums, and much like the next
one: finished blocks are compressed, many together.
"""

import json
import math
import operator
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.engine.sums import Distribution, ExactSum, Histogram, Integers, Moments
from jaxprune.engine.tally import WORST_KEPT, Tally

MAX_BYTES = 2**24
"""Of finished blocks before they are compressed. A tally with a trial in every bucket of each of
its histograms, and large counts, is 3 MB."""

_RAW_DEFLATE = -15  # without a header and checksum: the store has a better one
_BUCKETS = 0x7F80  # of infinity
_LARGEST = float(np.finfo(np.float32).max)
_COUNTS = ("trials", "nonfinite", "target_correct", "pruned_correct")
_HISTOGRAMS = ("lower", "upper", "sampled")
_MOMENTS = ("squared", "capped_lower", "capped_upper")
_DISTRIBUTIONS = ("mean", "relative")


def canonical(value: Any) -> bytes:
    """Plain data as JSON that is the same for equal data."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def pack(tally: Tally) -> bytes:
    """A tally without its questions: epsilons, cap and number of labelled inputs."""
    return canonical(
        {
            "close": tally.close,
            "far": tally.far,
            "changes": _integers(tally.changes),
            "worst": tally.worst,
            **{name: getattr(tally, name) for name in _COUNTS},
            **{name: _histogram(getattr(tally, name)) for name in _HISTOGRAMS},
            **{name: _moments(getattr(tally, name)) for name in _MOMENTS},
            **{name: _distribution(getattr(tally, name)) for name in _DISTRIBUTIONS},
        }
    )


def unpack(data: bytes, empty: Tally) -> Tally:
    """The tally of bytes that `pack` made.

    Args:
      data: whatever a file holds.
      empty: a tally of the same questions, of no trial.

    Raises:
      ValueError: the bytes are no tally, or contradict themselves.
    """
    try:
        plain = read_json(data)
        tally = Tally(
            eps=empty.eps,
            cap=empty.cap,
            labelled=empty.labelled,
            close=tuple(map(_count, plain.pop("close"))),
            far=tuple(map(_count, plain.pop("far"))),
            changes=_read_integers(plain.pop("changes")),
            worst=tuple((_gap(gap), _count(trial)) for gap, trial in plain.pop("worst")),
            **{name: _count(plain.pop(name)) for name in _COUNTS},
            **{name: _read_histogram(plain.pop(name)) for name in _HISTOGRAMS},
            **{name: _read_moments(plain.pop(name)) for name in _MOMENTS},
            **{name: _read_distribution(plain.pop(name)) for name in _DISTRIBUTIONS},
        )
        _check(tally, plain)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        raise ValueError(f"no tally: {type(e).__name__} {str(e)[:100]}") from None
    return tally


class FinishedBlock(NamedTuple):
    """A block as it is kept.

    Attributes:
      block: its id.
      trials: how many.
      device: that ran it.
      seconds: spent on it.
      tally: as bytes, see `pack`.
    """

    block: int
    trials: int
    device: str
    seconds: float
    tally: bytes


def compress(blocks: Sequence[FinishedBlock]) -> bytes:
    """Finished blocks of one case as bytes: a line of facts, and one line per tally.

    Raises:
      ValueError: they are more than `MAX_BYTES`.
    """
    text = b"\n".join([canonical([b[:-1] for b in blocks]), *(b.tally for b in blocks)])
    if len(text) > MAX_BYTES:
        raise ValueError(f"finished blocks take {len(text)} bytes; at most {MAX_BYTES} are allowed")
    return zlib.compress(text, wbits=_RAW_DEFLATE)


def decompress(data: bytes) -> list[FinishedBlock]:
    """The blocks of bytes that `compress` made.

    Args:
      data: whatever a file holds; at most `MAX_BYTES` are made of it.

    Raises:
      ValueError: the bytes are no blocks. What the tallies say is not looked at.
    """
    stream = zlib.decompressobj(_RAW_DEFLATE)
    try:
        text = stream.decompress(data, MAX_BYTES)
        if not stream.eof or stream.unused_data:
            raise ValueError("its data do not end where they should")
        facts, _, tallies = text.partition(b"\n")
        facts = read_json(facts)
        tallies = tallies.split(b"\n", len(facts))
        return [FinishedBlock(*fact, tally) for fact, tally in zip(facts, tallies, strict=True)]
    except (zlib.error, ValueError, TypeError) as e:
        raise ValueError(f"no blocks: {type(e).__name__} {str(e)[:100]}") from None


def _check(tally, rest):
    n, asked, capped = tally.finite, len(tally.eps), math.isfinite(tally.cap)
    spread = [getattr(tally, name) for name in _DISTRIBUTIONS]
    correct = tally.target_correct, tally.pruned_correct
    values, counts = tally.changes.values.tolist(), tally.changes.counts.tolist()
    sound = (
        not rest
        and n >= 0
        and len(tally.close) == len(tally.far) == asked
        and all(c + f <= n for c, f in zip(tally.close, tally.far, strict=True))
        and all(getattr(tally, name).buckets.total == n for name in _HISTOGRAMS)
        and all(d.histogram.buckets.total == d.moments.count == n - d.infinite for d in spread)
        and tally.squared.count == n
        and tally.capped_lower.count == tally.capped_upper.count == (n if capped else 0)
        and max(correct) <= n * tally.labelled
        and tally.changes.total == n
        and all(abs(value) <= tally.labelled for value in values)
        and sum(map(operator.mul, values, counts)) == correct[1] - correct[0]
        and _are_worst(tally)
    )
    if not sound:
        raise ValueError("its counts contradict one another")


def _are_worst(tally):
    """Whether the worst trials are different ones, in order, the top of the lower bounds."""
    gaps, ids = zip(*tally.worst, strict=True) if tally.worst else ((), ())
    lower = tally.lower.buckets
    top = np.repeat(lower.values[-WORST_KEPT:], np.minimum(lower.counts[-WORST_KEPT:], WORST_KEPT))
    ranked = sorted(tally.worst, key=lambda pair: (-pair[0], pair[1]))
    return (
        list(tally.worst) == ranked
        and len(set(ids)) == len(ids)
        and np.array_equal(Histogram.of(gaps).buckets.each(), top[-WORST_KEPT:])
    )


def _integers(found: Integers):
    return [found.values.tolist(), found.counts.tolist()]


def _read_integers(plain):
    values, counts = [_integer(v) for v in plain[0]], [_count(n) for n in plain[1]]
    if (
        len(plain) != 2
        or len(values) != len(counts)
        or sorted(set(values)) != values
        or 0 in counts
        or sum(counts) >= 2**63
    ):
        raise ValueError("counts of integers are needed")
    return Integers(np.array(values, np.int64), np.array(counts, np.int64))


def _histogram(h: Histogram):
    return _integers(h.buckets)


def _read_histogram(plain):
    buckets = _read_integers(plain)
    if len(buckets.values) and not 0 <= buckets.values[0] <= buckets.values[-1] < _BUCKETS:
        raise ValueError("a histogram is needed")
    return Histogram(buckets)


# Sums are integers of up to 2,200 bits; hexadecimal text is read and written in linear time.


def _moments(m: Moments):
    return [m.count, hex(m.total.units), hex(m.squares.units)]


def _read_moments(plain):
    count, total, squares = plain
    count, total, squares = _count(count), int(total, 16), int(squares, 16)
    # Sums of `count` squares of float32 numbers, and of the squares of those, in units of 2^-1074.
    if not (0 <= total <= count << 1074 + 256 and 0 <= squares <= count << 1074 + 512):
        raise ValueError("sums of numbers are needed")
    return Moments(count, ExactSum(total), ExactSum(squares))


def _distribution(d: Distribution):
    return [_histogram(d.histogram), _moments(d.moments), d.infinite]


def _read_distribution(plain):
    histogram, moments, infinite = plain
    return Distribution(_read_histogram(histogram), _read_moments(moments), _count(infinite))


def _integer(value):
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError(f"{str(value)[:40]}: an integer is needed")
    return value


def _count(value):
    if _integer(value) < 0:
        raise ValueError(f"{value}: a count is needed")
    return value


def _gap(value):
    if type(value) not in (int, float) or not 0 <= value <= _LARGEST:
        raise ValueError(f"{str(value)[:40]}: a gap is needed")
    return float(value)


def _refuse(name):
    raise ValueError(f"{name} is not strict JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def read_json(data: str | bytes) -> Any:
    """Strict JSON: no NaN, no infinity, no key twice.

    Raises:
      ValueError: it is none.
    """
    try:
        return json.loads(data, parse_constant=_refuse, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
