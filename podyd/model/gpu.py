"""A choice of cards, as members write it and as it is stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CardChoice:
    """The cards of a pod: all, a `count` of the least used, or those `named`.

    A name is an index, a UUID or a PCI address. `str` is as members write it.
    """

    everything: bool = False
    count: int | None = None
    named: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.everything:
            return "all"
        if self.count is not None:
            return str(self.count) if self.count else "none"
        return ",".join(self.named) + ("," if len(self.named) == 1 else "")

    def stored(self) -> str:
        """As it is stored on an instance: `all`, a number, or names with a comma after each.

        Later versions must read it, whatever form they accept from members.
        """
        if self.everything:
            return "all"
        if self.count is not None:
            return str(self.count)
        return "".join(f"{name}," for name in self.named)

    @classmethod
    def of_stored(cls, text: str) -> CardChoice:
        """Parse what `stored` returned, also in an older version. Raises ValueError."""
        if text == "all":
            return cls(everything=True)
        if text.isdigit():
            return cls(count=int(text))
        named = tuple(text.removesuffix(",").split(","))
        if "," not in text or "" in named:
            raise ValueError(text)
        return cls(named=named)
