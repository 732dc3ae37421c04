"""An allowance for each device: so many at once, and so many a second after that.

What a device may make the server write to its journal or log is bounded by it. Honest devices never notice: they say
Hello when they connect, and report energy once for each plan.
"""

# coverage: every branch


class Allowance:
    """Tokens by name, `burst` at first, that come back at `per_s` a second. `now_s` is any clock that goes forward."""

    def __init__(self, *, burst: float, per_s: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now_s: float) -> bool:
        """Take one; return False where there is none."""
        left, since_s = self._left.get(name, (self._burst, now_s))
        left = min(self._burst, left + (now_s - since_s) * self._per_s)
        self._left[name] = (left - 1 if left >= 1 else left, now_s)
        return left >= 1
