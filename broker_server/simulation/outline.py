"""The contents of experiment.json: the runs of an experiment, for readers of results that have not finished."""

# coverage: every branch

from collections.abc import Mapping

import msgspec


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """The methods, in order, the seeds, and the methods that stand in sections of their own."""

    name: str = ""
    """Of its file."""
    title: str = ""
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    sections: Mapping[str, tuple[str, ...]] = {}
    reference: str = ""
    """The method that the others are related to; one-by-one where none is named."""

    def section_of(self) -> dict[str, str]:
        """Return the section of each method that has one."""
        return {method: section for section, methods in self.sections.items() for method in methods}
