"""Sizes and times as people write them: ``16G``, ``100ms``, ``1h``."""

from __future__ import annotations

import re

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
LARGEST = 1 << 60
"""Of sizes, in bytes, and of times, in nanoseconds: 36 years."""

_BYTES_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_NS_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|min|h)")


def parse_bytes(text: str) -> int:
    """``16G``, ``2M``, ``1.5T``, ``4096``; powers of 1024.  ValueError says what was expected."""
    found = _BYTES_FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected a size such as '16G', not {text!r}")
    return _within(float(found[1]) * _BYTES[found[2].upper()], "an exbibyte", text)


def parse_ns(text: str) -> int:
    """``100ms``, ``60s``, ``1h`` as nanoseconds.  ValueError says what was expected."""
    found = _NS_FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected a time such as '100ms', '60s' or '1h', not {text!r}")
    return _within(float(found[1]) * _NS[found[2]], "36 years", text)


def _within(value: float, most: str, text: str) -> int:
    if value > LARGEST:
        raise ValueError(f"expected {most} at most, not {text!r}")
    return round(value)


def parse_duration(text: str) -> int:
    """A time that is more than nothing."""
    ns = parse_ns(text)
    if not ns:
        raise ValueError(f"expected more than {text!r}")
    return ns


def show_bytes(count: float) -> str:
    """``16G``, ``1.5M``: three digits at most."""
    for unit in ("T", "G", "M", "K"):
        if count >= _BYTES[unit]:
            return f"{count / _BYTES[unit]:.3g}{unit}"
    return f"{count:.3g}"


def show_ns(ns: float) -> str:
    """``1.23 ms``, ``450 ns``: three digits, in the unit that fits."""
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= scale:
            return f"{ns / scale:.3g} {unit}" if ns < 1000 * scale else f"{ns / scale:.0f} {unit}"
    return f"{ns:.3g} ns"
