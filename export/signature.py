"""The roles of the tensors that go into a graph and come out of it.

A tensor's name in a graph (edge_runtime.wire.graph_names) is the beginning that its role gives it, then its own name:
param.conv.weight, dz.0. Here alone such names are made and taken apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class Role(Enum):
    """The role of a tensor in a graph. The value is the beginning of such tensors' names."""

    VALUE = ""
    """The input x, the stem's embedding e, z.<i> of the representation, and v.<i> between stages of the encoder."""
    VALUE_GRADIENT = "d"
    """∂L/∂value."""
    PARAMETER = "param."
    PARAMETER_GRADIENT = "grad."
    STATE = "state."
    """Running statistics before the batch."""
    NEXT_STATE = "next."
    """Running statistics after the batch."""
    SAVED = "saved."
    """An activation that the forward pass saves for the backward pass."""
    TARGET = "target"
    SEED = "seed"
    LOSS = "loss"
    PREDICTION = "prediction"
    """The only prediction, or prediction.<name> of several."""

    @classmethod
    def of(cls, name: str) -> "Role":
        """Return the role of a tensor by its name in a graph."""
        beginning, dot, _ = name.partition(".")
        if beginning in _VALUES:
            return cls.VALUE
        if beginning == cls.PREDICTION.value:
            return cls.PREDICTION
        return cls.VALUE_GRADIENT if beginning[1:] in _VALUES else cls(f"{beginning}{dot}")

    def tensor_name(self, own: str) -> str:
        """Return the name in a graph of a tensor of this role, from its own."""
        return f"{self.value}{own}"

    def select(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """Return the tensors of this role by their own names, from those of a graph by their names there."""
        return {name[len(self.value) :]: tensor for name, tensor in tensors.items() if Role.of(name) is self}


_VALUES = frozenset({"x", "e", "z", "v"})


@dataclass(frozen=True)
class Signature:
    """The names of a graph's inputs and outputs, in order, to be asked for by their roles."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def inputs_of(self, role: Role) -> list[str]:
        """Return the inputs of a role, in order."""
        return [name for name in self.inputs if Role.of(name) is role]

    def outputs_of(self, *roles: Role) -> list[str]:
        """Return the outputs of some roles, in order."""
        return [name for name in self.outputs if Role.of(name) in roles]
