"""The meter that energy is measured by."""


class MeterUnusable(Exception):
    """The meter that was asked for cannot be used here; the sentence states why."""
