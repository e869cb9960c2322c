"""Which members of a tar shard are images of their own, and which are masks or other views of the same sample.

WebDataset groups members by their names up to the first dot: `0001.png`, `0001.seg.png` and `0001.cls` are one sample.
Names such as `scan.000.png` have dots without that meaning. A part between dots is the kind of a further image if it
begins with a letter and belongs to several samples, or to the only one; otherwise it is part of the name. In
`scan.000.png` and `scan.000.seg.png`, the number is part of the name too: both are the sample `scan.000`.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ditlab.data.reading import Reading
from ditlab.data.sources.columns import IMAGES
from ditlab.data.sources.files import SUFFIXES, VIDEOS
from ditlab.data.sources.shards import Image

KIND = re.compile(r"[^\W\d][\w-]*")


class Member(NamedTuple):
    """An image member and the parts of its name."""

    image: Image
    sample: str  # name up to the first dot, and the number after it if a kind follows
    middle: str  # between the sample and the suffix, such as "seg"
    suffix: str  # with its dot, in lower case

    @property
    def kind(self) -> str:
        """How messages call it: ".png" or ".seg.png"."""
        return f".{self.middle}{self.suffix}" if self.middle else self.suffix

    @property
    def left_out(self) -> str:
        """Why it is left out; a number in its name is no kind, and must not give every image a reason of its own."""
        return f"further image of a sample ({self.kind if KIND.fullmatch(self.middle) else self.suffix})"


def choose_images(images: list[Image], wanted: str, reading: Reading) -> list[Image]:
    """The images of one shard that are read: one of each sample.

    Args:
        images: all image members.
        wanted: the kind that the user wants, such as "seg.png", "seg" or "jpg"; empty to choose.
        reading: where further images of a sample are counted.
    """
    groups: dict[str, list[Member]] = {}
    for member in split_names(images):
        groups.setdefault(member.sample, []).append(member)
    if wanted:
        return choose_wanted(groups.values(), wanted.lower().lstrip("."), reading)
    if all(len(group) == 1 for group in groups.values()):
        return images
    shared = Counter(middle for group in groups.values() for middle in {member.middle for member in group})
    kinds = {name for name, count in shared.items() if KIND.fullmatch(name) and (count > 1 or len(groups) == 1)}
    chosen: list[Image] = []
    for group in groups.values():
        kept = images_of_sample(group, kinds) if len(group) > 1 else group
        chosen += [member.image for member in kept]
        for member in group:
            if member not in kept:
                reading.leave_out(member.image[0], member.left_out)
    return chosen


def choose_wanted(groups: Iterable[list[Member]], wanted: str, reading: Reading) -> list[Image]:
    """The images of the kind that the user wants."""
    chosen: list[Image] = []
    for group in groups:
        for member in group:
            if wanted in (member.kind[1:], member.middle):
                chosen.append(member.image)
            else:
                reading.leave_out(member.image[0], member.left_out)
    return chosen


def images_of_sample(group: list[Member], kinds: set[str]) -> list[Member]:
    """The members of one sample that are images of their own.

    Args:
        group: image members with the same name up to the first dot.
        kinds: parts of names that are kinds of further images.
    """
    named = [member for member in group if member.middle in kinds]
    plain = [member for member in group if not member.middle]
    if named and not plain:  # such as image.jpg and mask.png
        usual = [member for name in IMAGES for member in named if member.middle.lower() == name]
        named = usual[:1] or named
    elif plain:
        named = []
    others = [member for member in group if member.middle not in kinds]
    by_name: dict[str, Member] = {}
    for member in [*others, *named]:  # of a.jpg and a.png, the one whose suffix comes first
        key = member.image[0][: -len(member.suffix)]
        if key not in by_name or rank(member) < rank(by_name[key]):
            by_name[key] = member
    keep = {*by_name.values()}
    return [member for member in group if member in keep]


def rank(member: Member) -> int:
    """The position of a suffix: videos before photos, and those before other images and arrays."""
    ranks = (*VIDEOS, *SUFFIXES)
    return ranks.index(member.suffix) if member.suffix in ranks else len(ranks)


def split_names(images: list[Image]) -> list[Member]:
    """The parts of the names of image members."""
    stems = [image[0].rpartition(".")[0] for image in images]
    numbered = {sample for stem in stems if (sample := numbered_sample(stem))}
    members = []
    for image, stem in zip(images, stems, strict=True):
        folder, slash, file = stem.rpartition("/")
        short, _, middle = file.partition(".")
        sample = f"{folder}{slash}{short}"
        if stem in numbered:
            sample, middle = stem, ""
        elif longer := numbered_sample(stem):
            sample, middle = longer, stem[len(longer) + 1 :]
        members.append(Member(image, sample, middle, f".{image[0].rpartition('.')[2].lower()}"))
    return members


def numbered_sample(stem: str) -> str:
    """The sample of a name such as `scan.000.seg`: `scan.000`; empty for other names."""
    sample, _, kind = stem.rpartition(".")
    *first, number = sample.rpartition("/")[2].split(".")
    return sample if first and KIND.fullmatch(kind) and not KIND.fullmatch(number) else ""
