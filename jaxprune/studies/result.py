"""What the results of all studies share: a plan's hash, the environment, plain data, progress."""

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy

import jaxprune
from jaxprune.engine import GUARD, keys, precision
from jaxprune.laws import Law


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
      doing: what is being sampled or trained, in words.
      done: work done, in rough seconds.
      total: all work, in the same unit.
      note: what the trials say so far, in words; empty where nothing is to be said.
    """

    doing: str
    done: float
    total: float
    note: str = ""


def sha256(source: Mapping[str, Any]) -> str:
    """SHA-256 of plain data's canonical JSON."""
    text = json.dumps(source, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def law_source(law: Law) -> dict[str, Any]:
    """A law as a plan states it."""
    return {"family": law.family.name, "scaling": law.scaling, "gain": law.gain}


def environment(seed: int) -> dict[str, Any]:
    """Versions, device and stream: with the plan, what a run's numbers depend on."""
    device = jax.local_devices()[0]
    return {
        "jaxprune": jaxprune.__version__,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "seed": seed,
        "stream_version": keys.STREAM_VERSION,
        "guard_band": GUARD,
    }


def identity() -> dict[str, Any]:
    """On what every count of a plan depends, to the last bit, beside the plan and its blocks."""
    device = jax.local_devices()[0]
    return {
        "jaxprune": jaxprune.__version__,
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "scipy": scipy.__version__,  # its LAPACK
        "stream_version": keys.STREAM_VERSION,
        "device": device.device_kind,
        "processor": processor() if device.platform == "cpu" else None,
        "products": precision.FULL,
    }


def processor() -> str:
    """A name for this kind of processor: code compiled on one runs alike on another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = platform.machine() + platform.processor() + features
    return hashlib.sha256(kind.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Plain data without NaN or infinity, which strict JSON lacks: they become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
