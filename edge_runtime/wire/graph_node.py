"""A node of a graph, as far as its shapes matter: its operator, its attributes and what it reads."""

# coverage: every branch

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_NUMBERS = 64
"""The most numbers of a value that are kept: shapes are shorter."""

Shape = tuple[int, ...]
Attribute = int | tuple[int, ...] | str
Attributes = Mapping[str, Attribute]


@dataclass(frozen=True)
class KnownArray:
    """An array: its shape, and its numbers where they are known, in rows."""

    shape: Shape
    numbers: tuple[float, ...] | None = None

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class Unknown(Exception):
    """Something does not follow from what is known."""


@dataclass(frozen=True)
class Node:
    """An operator, its attributes and what it reads, of which None is what is left out."""

    operator: str
    attributes: Attributes
    inputs: Sequence[KnownArray | None]
    outputs: int

    def has(self, place: int) -> bool:
        """Return whether an input is there."""
        return place < len(self.inputs) and self.inputs[place] is not None

    def value(self, place: int) -> KnownArray:
        """Return an input that must be there."""
        found = self.inputs[place] if place < len(self.inputs) else None
        if found is None:
            raise Unknown
        return found

    def shape(self, place: int = 0) -> Shape:
        """Return the shape of an input."""
        return self.value(place).shape

    def numbers(self, place: int) -> tuple[float, ...]:
        """Return the numbers of an input."""
        numbers = self.value(place).numbers
        if numbers is None:
            raise Unknown
        return numbers

    def integers(self, place: int) -> Shape:
        """Return the numbers of an input as integers."""
        return tuple(int(number) for number in self.numbers(place))

    def integer(self, name: str, default: int) -> int:
        """Return an attribute that is a number."""
        found = self.attributes.get(name, default)
        if not isinstance(found, int):
            raise Unknown
        return found

    def several(self, name: str, default: Sequence[int] = ()) -> Shape:
        """Return an attribute that is several numbers."""
        found = self.attributes.get(name, tuple(default))
        if not isinstance(found, tuple):
            raise Unknown
        return found

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is a text."""
        found = self.attributes.get(name, default)
        if not isinstance(found, str):
            raise Unknown
        return found
