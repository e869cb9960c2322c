"""Records of generated images: everything that decides them, in PNG metadata and in samples.json, and back."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import PngImagePlugin

from ditlab.conditioning import Text
from ditlab.config.sampling import NAMES, SETTINGS, modern, preset_options
from ditlab.core.errors import InputError
from ditlab.core.formats import check_types, parse_object
from ditlab.core.io import replace_text
from ditlab.core.registry import imported_parts_only
from ditlab.core.sizes import read_text
from ditlab.core.types import Between, Label, Seed
from ditlab.core.units import counted, from_width_first, noun_of, width_first
from ditlab.core.version import __version__
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.diffusion.samplers import GRIDS, SAMPLERS
from ditlab.inference.inpaint import Original, read_image
from ditlab.inference.plan import Plan
from ditlab.report.videos import FRAMES

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline
    from ditlab.inference.pipeline import Pipeline

METADATA = "ditlab"  # key of the text chunk in PNG files with the settings as JSON
RECORD = "samples.json"
WITHOUT = (".npz", ".webp", ".gif", ".mp4", ".webm")  # suffixes of files that ditlab writes without settings in them
CLIP = ("given", "frames", "overlap")
PER_IMAGE = ("label", "prompt", "seed", "image", "mask", "image_hash", *CLIP)
START = ("strength", "resample")
COMMON_TYPES: dict[str, tuple[type, ...]] = {
    "source": (str,), "load_options": (dict,), "negative_prompt": (str,), "fps": (int, float),
}  # fmt: skip
SETTING_TYPES: dict[str, tuple[type, ...]] = {"schedule": (str, list), "guidance_channels": (int, type(None))}
IMAGE_TYPES: dict[str, tuple[type, ...]] = {
    "file": (str,), "seed": (int, dict), "label": (str, int, dict, type(None)), "image": (str, type(None)),
    "mask": (str, type(None)), "image_hash": (str, type(None)), "given": (list,), "frames": (int,), "overlap": (int,),
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """Everything that decides some generated images, as plain values."""

    common: dict[str, Any]
    images: list[dict[str, Any]]  # label (or prompt) and seed of each image, and the image that it starts from

    def image(self, i: int) -> dict[str, Any]:
        """Return everything that decides image i."""
        return self.common | self.images[i]

    def every(self) -> list[dict[str, Any]]:
        """Return everything that decides each image."""
        return [self.image(i) for i in range(len(self.images))]

    def listed(self, files: Sequence[Path]) -> dict[str, Any]:
        """Return the content of samples.json for images in these files."""
        images = [{"file": file.name, **image} for file, image in zip(files, self.images, strict=True)]
        return self.common | {"images": images}

    def played(self, fps: float | None) -> "Record":
        """Return the record of videos whose files play at a frame rate; None for images."""
        return self if fps is None else replace(self, common=self.common | {"fps": fps})

    def write(self, files: Sequence[Path]) -> Path:
        """Write samples.json beside the images; returns its path."""
        path = files[0].parent / RECORD
        replace_text(path, json.dumps(self.listed(files), indent=2) + "\n")
        return path


def describe(
    pipe: "BasePipeline", plan: Plan, labels: Sequence[Label], seeds: Sequence[Seed], guide: "BasePipeline | None"
) -> Callable[[], Record]:
    """Record how images are generated, except for the hashes of the weights, which take time.

    Args:
        pipe: the model.
        plan: the resolved settings.
        labels, seeds: of each image.
        guide: the weaker model of autoguidance.

    Returns:
        A function that adds the hashes. They are None if the weights were changed in the meantime.
    """
    start, state = plan.original, weights_state(pipe.model)
    settings = plan.settings() | ({} if start is None else start.options)
    common: dict[str, Any] = {
        "version": __version__,
        "model": pipe.net.config.get("name"),
        **pipe.model.loaded_from,
        "images_seen": pipe.model.config.get("images_seen"),
        "precision": pipe.net.precision,
        "size": recorded_size(pipe, plan.size),
        **({"show": list(pipe.values.shown)} if pipe.values.shown else {}),
        **({} if plan.negative is None else {"negative_prompt": plan.negative}),
        "settings": settings,
    }
    what = "prompt" if isinstance(pipe.conditioner, Text) else "label"
    images = [
        {what: plain(label), "seed": plain(seed), **({} if start is None else start.about(i))}
        for i, (label, seed) in enumerate(zip(labels, seeds, strict=True))
    ]

    def complete() -> Record:
        identity = pipe.model.identity() if weights_state(pipe.model) == state else {}
        hashes = {name: identity.get(name) for name in ("weights_hash", "autoencoder_hash")}
        if guide is not None:
            hashes["guide_hash"] = guide.model.identity()["weights_hash"]
        return Record(common | hashes, images)

    return complete


def recorded_size(pipe: "BasePipeline", size: Sequence[int]) -> str:
    """Return a size of the network's input as records name it: WIDTHxHEIGHT, of clips FRAMESxWIDTHxHEIGHT."""
    return width_first((*size[:-2], *pipe.picture_shape_of(size)[1]))


def weights_state(model: "Pipeline") -> list[int]:
    """Return the number of changes of each weight of a model, by which later changes are noticed."""
    parts = (model.net, model.autoencoder)
    values = [value for part in parts for value in part.state_dict().values()]
    return [0 if value.is_inference() else value._version for value in values]


def plain(value: Label | Seed) -> Any:
    """Convert a label or seed to a plain value for JSON."""
    return dict(vars(value)) if isinstance(value, Between) else value


def png_metadata(settings: dict[str, Any] | None) -> PngImagePlugin.PngInfo:
    """Return the metadata of a PNG file with these settings."""
    metadata = PngImagePlugin.PngInfo()
    if settings is not None:
        metadata.add_text(METADATA, json.dumps(settings))
    return metadata


@dataclass(frozen=True)
class Repeat:
    """Generated images that are to be generated again."""

    file: Path
    common: dict[str, Any]
    images: list[dict[str, Any]]  # empty for an .npz file
    many: dict[str, Any] | None  # count, label_sampling, seed and any prompts of an .npz file

    @property
    def settings(self) -> dict[str, Any]:
        """The sampling settings that were used."""
        return {name: value for name, value in self.common["settings"].items() if name in NAMES}

    @property
    def start(self) -> dict[str, Any]:
        """The image and mask to start from, strength and resample; empty if the images start from noise.

        For clips, the given frames and the length instead.

        Raises:
            InputError: the images start from several images, or from one whose path is not recorded.
        """
        clips = [{name: image[name] for name in CLIP if name in image} for image in self.images]
        if any(clip != clips[0] for clip in clips):
            raise InputError(f"the clips of {self.file} start from several frames; give them again")
        hashed = bool(clips) and "image_hash" in self.images[0]
        if clips and (clips[0] or (hashed and "strength" not in self.common["settings"])):
            return clips[0] | ({"given": ()} if hashed and "given" not in clips[0] else {})
        starts = {(image.get("image"), image.get("mask"), image.get("image_hash")) for image in self.images}
        if len(starts) > 1:
            raise InputError(f"the images of {self.file} start from several images; repeat one of its PNG files")
        values = {name: self.common["settings"][name] for name in START if name in self.common["settings"]}
        image, mask, _ = next(iter(starts), (None, None, None))
        return values | {name: path for name, path in (("image", image), ("mask", mask)) if path is not None}

    def distinct(self, name: str) -> list[Any]:
        """Return the different labels ("label") or seeds ("seed"), in their order."""
        values: list[Any] = []
        for image in self.images:
            values += [] if image[name] in values else [image[name]]
        return values

    @property
    def format(self) -> Any:
        """The format of the files, unless they are PNG files or there are none."""
        suffixes = {Path(image["file"]).suffix.lower() for image in self.images if image.get("file")}
        (suffix,) = suffixes if len(suffixes) == 1 else (".png",)
        return None if suffix == ".png" else suffix[1:] if suffix in (".npy", *WITHOUT) else FRAMES

    @property
    def interpolates(self) -> bool:
        """Whether a label or seed lies between two others."""
        return any(isinstance(image[name], Between) for image in self.images for name in ("label", "seed"))

    def words(self, given: dict[str, Any], objective: Objective) -> dict[str, Any]:
        """Return the recorded sampling settings, with those that are given in their place.

        Args:
            given: explicit settings; a preset replaces all settings that it has.
            objective: the objective of the model.

        Raises:
            InputError: a sampler or schedule that is not imported, or the recorded times do not fit the given steps.
        """
        settings = self.settings
        with imported_parts_only():  # a file must not import anything
            SAMPLERS.find(str(settings.get("sampler", "heun")))
            if isinstance(name := settings.get("schedule"), str):
                GRIDS.find(name)
        replaced = {*given}
        if "preset" in given:
            replaced |= preset_options(given["preset"], chain=isinstance(objective.process, DDPM)).given().keys()
        if "sampler" in replaced:
            replaced.add("eta")  # of the recorded sampler
        settings = {name: value for name, value in settings.items() if name not in replaced}
        settings |= {name: self.common[name] for name in ("negative_prompt",) if name in self.common}
        if isinstance(size := self.common.get("size"), str) and re.fullmatch(r"(\d{1,5}x){1,2}\d{1,5}", size):
            settings["size"] = from_width_first(size)
        times = settings.get("schedule")
        if isinstance(times, list) and given.get("steps", len(times) - 1) != len(times) - 1:
            line = (
                f"{self.file} has the times of {counted(len(times) - 1, 'step')}, not {given['steps']}; give a "
                "schedule too"
            )
            raise InputError(line)
        return settings | given

    def changes(self, model: "Pipeline", original: Original | None) -> list[str]:
        """Return what differs from what the images were generated with, one line each.

        Args:
            model: the model.
            original: the image to start from.
        """
        identity, lines, images = model.identity(), [], f"the {noun_of(model.net.size)}s"
        start = "image or mask" if len(model.net.size) == 2 else "frame"
        for name, what in {"weights_hash": "other weights", "autoencoder_hash": "another autoencoder"}.items():
            value, now = self.common.get(name), identity[name]
            if value not in (None, now):
                lines.append(f"{self.file}: generated with {what} (hash {value}, now {now}); {images} will differ")
        if self.common.get("weights_hash") is None:
            lines.append(f"{self.file} does not record the weights of its model; {images} may differ")
        started = {image.get("image_hash") for image in self.images} - {None}
        if original is not None and started and started != {original.about(0).get("image_hash")}:
            lines.append(f"{self.file}: generated from another {start}; {images} will differ")
        return lines


def read_record(path: Path) -> Repeat:
    """Read how images were generated.

    Args:
        path: a PNG file that ditlab wrote, a video, a folder of frames or a .npy file beside its samples.json, a
            samples.json, or the folder of one.

    Raises:
        InputError: there is no such file, or it holds no settings.
    """
    if path.suffix.lower() == ".npy" or is_video(path):
        return listed(read_record(path.parent), path)
    file = path / RECORD if path.is_dir() else path
    if file.suffix.lower() in WITHOUT and file.exists():
        raise InputError(f"{file} holds no settings; give {file.with_name(RECORD)}, which ditlab writes beside it")
    missing = f"{file} holds no settings of ditlab; give a PNG file that no other program has changed, or {RECORD}"
    try:
        text = read_text(file) if file.suffix.lower() == ".json" else read_image(file).info.get(METADATA, "null")
        return understood(file, parse_object(text, parse_int=bounded))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no file {file}; give a PNG file that ditlab wrote, or {RECORD}") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(missing) from error


def is_video(path: Path) -> bool:
    """Whether a path is a video or a folder of frames that a samples.json beside it lists."""
    if not (path.suffix.lower() in WITHOUT or path.is_dir()) or not (path.parent / RECORD).is_file():
        return False
    return any(image.get("file") == path.name for image in read_record(path.parent / RECORD).images)


def listed(repeat: Repeat, file: Path) -> Repeat:
    """Return the part of a samples.json that describes one of its files, which has no metadata itself.

    Raises:
        InputError: the file is not listed.
    """
    images = [image for image in repeat.images if image.get("file") == file.name]
    if not images:
        raise InputError(f"{repeat.file} does not list {file.name}; give one of its files, or {RECORD}")
    return replace(repeat, images=images)


def understood(file: Path, content: dict[str, Any]) -> Repeat:
    """Convert the settings of a file (of a PNG file, of the HTTP API, of samples.json) to one form."""
    if "settings" not in content:
        names = (*NAMES, *SETTINGS, *START)
        content["settings"] = {name: content.pop(name) for name in names if name in content}
    content["settings"] = modern(dict(content["settings"]), SETTINGS)
    content["settings"]["steps"], content["settings"]["sampler"]  # every record has them
    check_types(content, COMMON_TYPES)
    content |= {"show": [*map(index, content["show"])]} if "show" in content else {}
    check_types(content["settings"], SETTING_TYPES)
    if "model_hash" in content:
        content["weights_hash"] = content.pop("model_hash")
    if isinstance(identity := content.get("model"), dict):
        hashes = {name: identity[name] for name in ("weights_hash", "autoencoder_hash")}
        content |= hashes | {"model": identity["backbone"].get("name")}
    if content.get("guide_hash") is not None:
        raise InputError(f"{file} was generated with a guide model; generate it again in Python")
    if "label_sampling" in content:
        many = {name: content.pop(name) for name in ("count", "label_sampling", "seed")}
        many |= {"prompts": content.pop("prompts")} if "prompts" in content else {}
        return Repeat(file, content, [], many)
    images = content.pop("images", None)
    if images is None:
        images = [{name: content.pop(name) for name in PER_IMAGE if name in content}]
    if not images:
        raise ValueError("no images")
    images = [{"label" if name == "prompt" else name: value for name, value in image.items()} for image in images]
    for image in images:
        check_types(image, IMAGE_TYPES)
    return Repeat(
        file, content, [image | {name: parsed(image[name]) for name in ("label", "seed")} for image in images], None
    )


def bounded(digits: str) -> int:
    """Convert an integer of a record.

    Raises:
        ValueError: it is larger than seeds and all other numbers of a record can be.
    """
    if len(digits) > 20:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def parsed(value: Any) -> Any:
    """Convert a label or seed from JSON."""
    return Between(value["first"], value["second"], value["weight"]) if isinstance(value, dict) else value
