"""Read and write autoencoders: diffusers' AutoencoderKL as a folder or a file, original single files, and ditlab's own.

A folder contains the scale and shift of the latents, a single file does not. The default scale 0.18215 belongs to DiT's
four-channel latents; others differ (SDXL: 0.13025), so that their files need `scale=` and `shift=`.
"""

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditlab.autoencoders import KL, Autoencoder, create_autoencoder
from ditlab.autoencoders.kl import autoencoder_class
from ditlab.core.device import usable_device
from ditlab.core.errors import InputError, nothing_at
from ditlab.core.formats import interpreting
from ditlab.core.hub import fetch
from ditlab.core.io import MANIFEST, remove, replace_text, write_manifest
from ditlab.core.modules import sizes, skip_init
from ditlab.core.registry import imported_parts_only
from ditlab.core.weights import (
    AUTOENCODER,
    CONFIG,
    fit,
    newest_checkpoint,
    pick_weights,
    read_config,
    read_file,
    read_json,
    read_tensors,
    weights_digest,
    write_tensors,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKL"
FORMAT = "ditlab autoencoder"
CONSTANTS = {"scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast"}
OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names until diffusers 0.17
LDM = "encoder.down.0.block.0.norm1.weight"  # a key of the original code


def load_autoencoder(
    path: str | Path, *, scale: float | None = None, shift: float | None = None, device: str | torch.device = "cpu"
) -> Autoencoder:
    """Load an autoencoder of any supported layout.

    Args:
        path: a folder in diffusers' layout, or with one in `vae/`; a folder written by `ditlab train-autoencoder`; a
            ditlab model or run folder (its network is not read); a single file of weights; or a hub id such as
            "stabilityai/sd-vae-ft-ema".
        scale, shift: x0 = (z - shift) scale; None is the value in the folder.
        device: device of the weights.

    Raises:
        InputError: the path does not exist, holds another kind of model, or is damaged; or the device cannot be used.
    """
    for name, value in (("scale", scale), ("shift", shift)):
        if value is not None and (not math.isfinite(value) or (name == "scale" and value == 0)):
            raise InputError(f"{name} {value} of the latents; give a finite number, and a scale that is not 0")
    device = usable_device(device)
    path = fetch(path)
    overrides = {name: value for name, value in (("scale", scale), ("shift", shift)) if value is not None}
    autoencoder = _read(path, overrides)
    return autoencoder.eval().requires_grad_(False).to(device)


def _read(path: Path, overrides: dict[str, float]) -> Autoencoder:
    if path.is_file():
        return _from_file(path, overrides)
    if not path.exists():
        raise nothing_at(path, "autoencoder", "give its folder, its file or a hub id")
    folder = path / "vae" if (path / "vae" / CONFIG).is_file() else path
    config = read_json(folder / CONFIG) if (model := newest_checkpoint(path)) is None else {"format": "ditlab"}
    if config.get("format") == "ditlab":
        return read_part(model or path)
    if config.get("format") == FORMAT:
        return _read_own(path, config | overrides)
    if config.get("_class_name") != CLASS:
        raise InputError(f"{folder} holds a {config.get('_class_name')}; give an {CLASS}")
    files = [folder / name for name in (WEIGHTS, WEIGHTS.replace("safetensors", "bin")) if (folder / name).is_file()]
    if not files:
        raise InputError(f"{folder / WEIGHTS} is missing; download the whole folder")
    known = inspect.signature(autoencoder_class().__init__).parameters
    architecture = {key: value for key, value in config.items() if key in known and key not in CONSTANTS}
    return _build(architecture, constants(config) | overrides, read_file(files[0]), files[0])


def _from_file(path: Path, overrides: dict[str, float]) -> KL:
    tensors = pick_weights(read_file(path), "ema", path)
    prefix = "first_stage_model."  # in a single file with all of Stable Diffusion
    tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)} or tensors
    if not {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= tensors.keys():
        raise InputError(
            f"{path} holds no KL autoencoder (its tensors are {', '.join(list(tensors)[:3])}, ...); give another file"
        )
    if LDM in tensors:
        tensors = _from_ldm(tensors)
    architecture = read_architecture(tensors)
    if architecture["latent_channels"] != 4 and "scale" not in overrides:
        raise InputError(f"{path} does not contain the scale of its latents; give scale= (and shift=), or the folder")
    return _build(architecture, {"scale": 0.18215} | overrides, tensors, path)


def _build(architecture: dict[str, Any], constants: dict[str, Any], tensors: dict[str, Tensor], source: Path) -> KL:
    tensors = {f"net.{rename(key)}": as_matrix(rename(key), value.float()) for key, value in tensors.items()}
    with (
        interpreting(source, "download it again", "is not a complete autoencoder"),
        skip_init(tensors, f"{source} with {sizes(architecture)}"),
    ):
        autoencoder = KL(architecture, **constants)
    autoencoder.load_state_dict(fit(tensors, autoencoder.state_dict(), str(source)), assign=True)
    return autoencoder


def rename(key: str) -> str:
    """Replace the names of attention weights until diffusers 0.17 by the present ones."""
    return re.sub(r"(attentions\.\d+\.)(query|key|value|proj_attn)\.", lambda m: f"{m[1]}{OLDER[m[2]]}.", key)


def as_matrix(key: str, value: Tensor) -> Tensor:
    """Reshape attention weights to matrices; in the original code they are 1x1 convolutions."""
    return value.flatten(1) if ".attentions." in key and value.ndim == 4 else value


def constants(config: dict[str, Any]) -> dict[str, Any]:
    """Return shift and scale from diffusers' config, each a number or a list with one number per channel."""
    scale = config.get("scaling_factor") or 1.0
    if config.get("latents_mean") and config.get("latents_std"):
        return {"shift": config["latents_mean"], "scale": [scale / std for std in config["latents_std"]]}
    return {"shift": config.get("shift_factor") or 0.0, "scale": scale}


def read_architecture(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Derive the arguments of diffusers' AutoencoderKL from tensor shapes (diffusers' names)."""
    levels = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("encoder.down_blocks."))
    resnets = {key.split(".")[4] for key in tensors if key.startswith("encoder.down_blocks.0.resnets.")}
    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": len(tensors["decoder.conv_out.weight"]),
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [len(tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"]) for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": len(resnets),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
        "mid_block_add_attention": any("mid_block.attentions" in key for key in tensors),
    }


def _from_ldm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of the original code to diffusers' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = 1 + max(int(key.split(".")[2]) for key in tensors if key.startswith("encoder.down."))
    shape = {"down_block_types": [""] * levels, "up_block_types": [""] * levels}
    renamed: dict[str, Tensor] = convert_ldm_vae_checkpoint(dict(tensors), shape)  # type: ignore[no-untyped-call]
    return renamed


@imported_parts_only()
def read_part(model: Path) -> Autoencoder:
    """Load the autoencoder of a ditlab model folder, without reading the network.

    Raises:
        InputError: the config is incomplete, or weights are missing or do not fit.
    """
    config, file = read_config(model), model / AUTOENCODER
    stored = read_tensors(file) if file.exists() else {}
    with interpreting(model / CONFIG, "save the model again", "is not a complete ditlab config"):
        part = config["autoencoder"]
        with skip_init(stored, f"{model / CONFIG} with an autoencoder of {sizes(part)}"):
            autoencoder = create_autoencoder(**part)
    if expected := autoencoder.state_dict():
        tensors = fit(stored or read_tensors(file), expected, str(file))
        autoencoder.load_state_dict(tensors, assign=True)
    return autoencoder.eval().requires_grad_(False)


@imported_parts_only()
def _read_own(folder: Path, config: dict[str, Any]) -> Autoencoder:
    tensors = read_tensors(folder / AUTOENCODER)
    with (
        interpreting(folder / CONFIG, "save it again", "is not a complete autoencoder"),
        skip_init(tensors, f"{folder / CONFIG} with {sizes(config)}"),
    ):
        autoencoder = create_autoencoder(**{key: value for key, value in config.items() if key != "format"})
    tensors = fit(tensors, autoencoder.state_dict(), str(folder / AUTOENCODER))
    autoencoder.load_state_dict(tensors, assign=True)
    return autoencoder


def save_autoencoder(autoencoder: Autoencoder, folder: Path, *, folded: bool = False) -> Path:
    """Write config.json and weights, in diffusers' layout for a `KL` and in ditlab's layout for others.

    Args:
        autoencoder: the autoencoder.
        folder: created if it does not exist; an autoencoder that it holds is replaced.
        folded: merge shift and scale into the 1x1 convolutions next to the latents, for programs that support a single
            scaling factor only (diffusers' DiTPipeline).

    Raises:
        InputError: the folder holds another model.
    """
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / MANIFEST)  # of the autoencoder that is replaced
    if not isinstance(autoencoder, KL):
        write_tensors(
            {key: value.contiguous() for key, value in autoencoder.state_dict().items()}, folder / AUTOENCODER
        )
        write_config(folder, {"format": FORMAT, **autoencoder.config})
        write_manifest(folder, AUTOENCODER)
        return folder
    config = {"_class_name": CLASS, **autoencoder.config["architecture"]}
    shift, scale = autoencoder.config["shift"], autoencoder.config["scale"]
    tensors = {key.removeprefix("net."): value for key, value in autoencoder.state_dict().items()}
    if shift == 0 and not isinstance(scale, list):
        config |= {"scaling_factor": scale}
    elif not folded and not isinstance(shift, list) and not isinstance(scale, list):
        config |= {"scaling_factor": scale, "shift_factor": shift}
    elif folded:
        config |= {"scaling_factor": 1.0}
        tensors = fold(tensors, shift, scale)
    else:
        means, deviations = (torch.as_tensor(v).double() for v in (shift, 1 / torch.as_tensor(scale).double()))
        shape = (config["latent_channels"],)
        config |= {"scaling_factor": 1.0, "latents_mean": means.expand(shape).tolist()}
        config |= {"latents_std": deviations.expand(shape).tolist()}
    write_tensors(tensors, folder / WEIGHTS)
    write_config(folder, config)
    return folder


def check_free(folder: Path) -> None:
    """Check that a folder holds no config of anything but an autoencoder.

    Raises:
        InputError: it does.
    """
    if not (folder / CONFIG).exists():
        return
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT and config.get("_class_name") != CLASS:
        raise InputError(f"{folder} holds another model; give another folder for the autoencoder")


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write the `config.json` of an autoencoder folder."""
    replace_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def fold(tensors: dict[str, Tensor], shift: Any, scale: Any) -> dict[str, Tensor]:
    """Merge shift and scale into the weights: the latents of the result are (z - shift) scale.

    Raises:
        InputError: the autoencoder lacks the 1x1 convolutions into which they are merged.
    """
    if not {"quant_conv.weight", "post_quant_conv.weight"} <= tensors.keys():
        raise InputError("this autoencoder has no quant_conv that could hold its shift; convert to ditlab instead")
    channels = len(tensors["post_quant_conv.weight"])
    shift, scale = (torch.as_tensor(v).double().expand(channels) for v in (shift, scale))
    weight, bias = tensors["quant_conv.weight"].double(), tensors["quant_conv.bias"].double()
    rows = torch.cat([scale, torch.ones(channels)]).reshape(-1, 1, 1, 1)
    back, back_bias = tensors["post_quant_conv.weight"].double(), tensors["post_quant_conv.bias"].double()
    folded = {
        "quant_conv.weight": weight * rows,
        "quant_conv.bias": torch.cat([(bias[:channels] - shift) * scale, bias[channels:] + 2 * scale.log()]),
        "post_quant_conv.weight": back / scale.reshape(1, -1, 1, 1),
        "post_quant_conv.bias": back_bias + back[:, :, 0, 0] @ shift,
    }
    return tensors | {key: value.float() for key, value in folded.items()}


def fingerprint(autoencoder: Autoencoder) -> str:
    """Hash of the weights, shift and scale of an autoencoder; the same for all layouts of the same autoencoder."""
    shift, scale = (torch.as_tensor(autoencoder.config.get(name, 0.0)).tolist() for name in ("shift", "scale"))
    constants = f"{autoencoder.config['kind']} {rounded(shift)} {rounded(scale)}"
    return weights_digest(autoencoder, constants.encode()).hexdigest()


def rounded(constant: float | list[float]) -> str:
    """Format a constant with six digits, which do not change if a file stores its inverse."""
    return " ".join(f"{value:.6g}" for value in (constant if isinstance(constant, list) else [constant]))
