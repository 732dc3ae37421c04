"""What a function that is written with others cannot do."""


class Refused(Exception):
    """A function with arguments that nothing is written for."""

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
