"""Folders of numbered frames: each folder that holds images is a clip, and the folder above it is its class."""

import os
from collections import Counter
from pathlib import Path

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data.identity import Stamp, file_stamp
from ditlab.data.reading import Reading
from ditlab.data.sources.files import is_wanted, sorted_naturally
from ditlab.data.sources.folder import Folder, Layout


class FrameFolders(Folder):
    """Clips whose frames are image files in a folder, in the natural order of their names."""

    uses = (Folder.uses | {"frame_folders"}) - {"fps", "seconds"}

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return settings.frame_folders and Path(text).is_dir()

    @classmethod
    def layout(cls, root: Path, settings: Preparation, reading: Reading) -> Layout:
        """List the folders that hold images: `root/CLIP`, or `root/CLASS/CLIP`.

        Raises:
            InputError: an image lies in no folder.
        """
        images = Layout.read(root, reading)
        if "" in images.counts:
            raise InputError(f"{root / images.files[0]} lies beside the folders of frames; move it into one of them")
        clips = list(dict.fromkeys(os.path.dirname(name) for name in images.files))
        counts = Counter(clip.partition("/")[0] if "/" in clip else "" for clip in clips)
        return Layout(root, clips, dict(counts), captioned=0)

    def file(self, i: int) -> list[Path]:  # type: ignore[override]
        folder = self.root / self.files[i]
        return [
            folder / name for name in sorted_naturally([n for n in os.listdir(folder) if is_wanted(n, clips=False)])
        ]

    def stamp(self, i: int) -> Stamp:
        stamps = [file_stamp(frame, "") for frame in self.file(i)]
        return Stamp(self.key(i), sum(stamp.size for stamp in stamps), max(stamp.time for stamp in stamps))

    def content(self, i: int) -> bytes:
        return b"".join(frame.read_bytes() for frame in self.file(i))
