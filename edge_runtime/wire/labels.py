"""The label contract of a task: what its labels may be, as its loss takes them.

The exporter derives it from the loss and the shape of the prediction; whoever opens data holds the labels to it. A
bundle of before has none, and nothing is asked of its labels then.
"""

# coverage: every branch

from typing import Annotated

import msgspec
from msgspec import Meta

Class = Annotated[int, Meta(ge=-(2**31), lt=2**31)]


class LabelContract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the labels of a task may be: class numbers from 0 to `classes` - 1, or values within `bounds`."""

    classes: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    """The number of classes K; None for values, and for a loss whose classes are not known."""
    ignored: Annotated[tuple[Class, ...], Meta(max_length=16)] = ()
    """Class numbers that mean no label. They need not be below K."""
    bounds: tuple[float, float] | None = None
    """The least and the greatest value, as 0 and 1 of probabilities."""
    nan: bool = False
    """NaN marks an element without a label, for the loss. In every element it means a sample without one, always."""
    inf: bool = False
    """The loss takes infinite values, for elements without a label as a rule."""
