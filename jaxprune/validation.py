"""Checks of arguments at the public edge: one clear line that names argument, value and range.

JAX wraps oversized integers without a word (`jax.random.key(2**32)` equals `key(0)`), so every
public integer passes through here before it meets JAX.
"""

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np


def integer(name: str, value: Any, low: int, high: int = 2**31 - 1) -> int:
    """`value` as a Python int in `[low, high]`; booleans and floats are refused."""
    allowed = f"an integer from {low} to {high}"
    if isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: {allowed} is needed")
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} = {value!r}: {allowed} is needed") from None
    if not low <= number <= high:
        raise ValueError(f"{name} = {value!r}: {allowed} is needed")
    return number


def real(name: str, value: Any, low: float, high: float, *, open: bool = True) -> float:
    """`value` as a finite float in `(low, high)`, or in `[low, high]` if not `open`."""
    left, right = ("(", ")") if open else ("[", "]")
    allowed = f"a finite number in {left}{low:g}, {high:g}{right}"
    if math.isinf(high):
        allowed = f"a finite number {'above' if open else 'of at least'} {low:g}"
    try:
        number = float("nan") if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    inside = low < number < high if open else low <= number <= high
    if not (inside and math.isfinite(number)):
        raise ValueError(f"{name} = {value!r}: {allowed} is needed")
    return number


def instance(name: str, value: Any, kind: type, needed: str) -> Any:
    """`value` if it is a `kind`; `needed` says in words what is."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} = {shown(value)}: {needed} is needed")
    return value


def array(name: str, value: Any, dtype: Any = None) -> np.ndarray:
    """`value` as a NumPy array; all arrays from outside become one here.

    Masked arrays are refused: NumPy's conversion takes what their mask hides for numbers.
    """
    unmasked(name, value)
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} = {shown(value)}: an array of numbers is needed") from None


def unmasked(name: str, value: Any) -> Any:
    """`value` unless it is a masked array, or a list or tuple with one in it."""
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"{name}: a masked array, whose mask would be lost; x.filled(...) is needed"
        )
    if isinstance(value, list | tuple):
        for part in value:
            unmasked(name, part)
    return value


def said(error: Exception) -> str:
    """What other people's code raised, in one line of at most 200 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."


def shown(value: Any) -> str:
    """A value as code, in one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """`value` if it is one of `allowed`; otherwise an error that suggests the nearest."""
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{name} = {value!r}: one of {', '.join(names)} is needed{hint}")
