"""What a source of images chose and left out, so that commands can report it before any long work."""

from dataclasses import dataclass, field

from ditlab.core.units import counted

UNCONDITIONAL = "unconditional"
SHORT = "too short"
"""Beginning of the reason why a clip with fewer frames than asked for is skipped."""


def classes_from(count: int, origin: str) -> str:
    """The conditions of a source with classes: "10 classes from folders"."""
    return f"{counted(count, 'class')} from {origin}"


@dataclass
class LeftOut:
    """Files or rows that were left out for one reason."""

    count: int = 0
    example: str = ""
    """The name of the first one."""


@dataclass
class Reading:
    """What a source chose, and what it left out."""

    conditions: str = UNCONDITIONAL
    """The conditions and their origin: "10 classes from folders", "3 classes from column label", "unconditional"."""
    split: str = ""
    """The part that was read, and the parts that were not: "train (also there: val, test)"."""
    notes: list[str] = field(default_factory=list)
    """Further choices, one sentence each: 'images from column "image"; also there: "mask"'."""
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    """Reason -> what was left out."""

    def leave_out(self, name: str, reason: str, count: int = 1) -> None:
        """Count something that is left out; the same reason has the same words everywhere."""
        entry = self.left_out.setdefault(reason, LeftOut(example=name))
        entry.count += count

    def leave_out_all(self, other: "Reading") -> None:
        """Count what another reading left out."""
        for reason, left in other.left_out.items():
            self.leave_out(left.example, reason, left.count)
