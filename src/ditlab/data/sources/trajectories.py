"""A folder of trajectories: arrays (T, C, H, W) in files .npy or .npz, with one sub-folder for each class, or flat."""

import os
from pathlib import Path

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data.reading import Reading
from ditlab.data.sources.files import sorted_naturally, utf8_name
from ditlab.data.sources.folder import Folder, Layout

SUFFIXES = (".npy", ".npz")


class TrajectoryFolder(Folder):
    """Files of trajectories in a folder; a class is a kind of equation, say."""

    uses = frozenset({"trajectories", "stride", "split", "label_column", "range", "show"})

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return settings.trajectories and Path(text).is_dir()

    @classmethod
    def layout(cls, root: Path, settings: Preparation, reading: Reading) -> Layout:
        """List the files of a folder and of the folders in it.

        Raises:
            InputError: there are none.
        """
        files: list[str] = []
        counts: dict[str, int] = {}
        for folder in ("", *sorted_naturally([entry.name for entry in os.scandir(root) if entry.is_dir()])):
            if folder.startswith("."):
                continue
            names = sorted_naturally(os.listdir(root / folder))
            chosen = [name for name in names if name[0] != "." and name.lower().endswith(SUFFIXES)]
            others = [n for n in names if n not in chosen and (root / folder / n).is_file()]
            for name in others:
                reading.leave_out(utf8_name(f"{folder}/{name}" if folder else name), "no trajectory (.npy, .npz)")
            if chosen:
                files += [f"{folder}/{name}" if folder else name for name in chosen]
                counts[folder] = len(chosen)
        if not files:
            raise InputError(f"no trajectories in {root}; put files .npy or .npz with arrays (T, C, H, W) there")
        return Layout(root, files, counts, captioned=0)
