"""The structure of a U-Net, and what it is read off: the names and shapes of a state dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class Misfit(ValueError):
    """Raised where names or shapes are not those of a network; says which."""


@dataclass(frozen=True)
class Structure:
    """What the names and shapes of a state dict tell of a network.

    Attributes:
        unet: fields of `unet.UNet`.
        attended: whether each level has attention.
        inputs: input channels of the first convolution.
        outputs: output channels of the last convolution.
        classes: rows of the class embedding; None if it has none.
    """

    unet: Mapping[str, Any]
    attended: tuple[bool, ...]
    inputs: int
    outputs: int
    classes: int | None


class Shapes:
    """The shapes of a state dict by name."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def matrix(self, name: str) -> tuple[int, int]:
        """Return the outputs and inputs of a layer; raises Misfit if there is no such layer."""
        if name not in self._shapes:
            raise Misfit(f"{name} is missing")
        shape = self._shapes[name]
        if len(shape) < 2 or 0 in shape:
            raise Misfit(f"{name} has shape {shape}")
        return shape[0], shape[1]

    def rows(self, name: str) -> int | None:
        """Return the rows of a table, or None if there is none."""
        return self.matrix(name)[0] if name in self._shapes else None

    def has_any(self, prefix: str) -> bool:
        """Test whether a name begins so."""
        return any(name.startswith(prefix) for name in self._shapes)

    def count(self, pattern: str, start: int = 0) -> int:
        """Return one more than the largest number n with names that begin as pattern of n."""
        before, after = pattern.split("{}")
        cut = (n.removeprefix(before) for n in self._shapes if n.startswith(before))
        numbers = [part for part, found, _ in (n.partition(after) for n in cut) if found]
        whole = [int(n) for n in numbers if n.isdigit() and len(n) < 5]
        if not whole or max(whole) < start:
            raise Misfit(f"{pattern.format(start)} is missing")
        return max(whole) + 1

    def multiples(self, name: str, channels: int, widths: Sequence[int]) -> tuple[int, ...]:
        """Return widths in units of ``channels``; raises Misfit unless they are whole."""
        if any(width % channels for width in widths):
            shown = ", ".join(map(str, widths))
            raise Misfit(f"{name} tells {channels} channels, and the levels have {shown}")
        return tuple(width // channels for width in widths)
