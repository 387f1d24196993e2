"""Quality of the sample checkpoints on instances they never saw; `python -m pekit.sample.evaluate` prints the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the quality table.

    Attributes:
        model: display name, such as "Grounding DINO".
        asked: what is measured, in words.
        value: the figure, a share between 0 and 1.
        bound: the figure wanted; None for a figure that others are to be read beside.
        at_least: whether the bound is a lower one.
        n: how many objects, photos or questions the figure rests on.
    """

    model: str
    asked: str
    value: float
    bound: float | None
    at_least: bool
    n: int

    @property
    def bound_text(self) -> str:
        """The bound in words."""
        if self.bound is None:
            return "–"
        return f"{'at least' if self.at_least else 'at most'} {self.bound:.2f}"

    @property
    def met(self) -> bool:
        """Whether the figure keeps the bound, if there is one."""
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound
