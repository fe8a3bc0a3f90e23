"""The table of how to encode values, by their type."""

from __future__ import annotations

from typing import Final

from tdpmmu.worlds.explore.position.functions import FUNCTIONS
from tdpmmu.worlds.explore.position.objects import encoder_for
from tdpmmu.worlds.explore.position.values import VALUES
from tdpmmu.worlds.explore.position.visit import Encoder, Visit


class _Encoders(dict[type, Encoder]):
    def __missing__(self, kind: type) -> Encoder:
        encoder = self[kind] = encoder_for(kind)
        return encoder


ENCODERS: Final = _Encoders({**VALUES, **FUNCTIONS})
"""Encoders of all types met so far; another type's is worked out when it is met."""


def visit() -> Visit:
    """A new walk over values."""
    return Visit(ENCODERS)
