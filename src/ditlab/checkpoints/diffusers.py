"""Read and write diffusers' layout: DiT here, other families by `Backbone.from_diffusers` and `to_diffusers`.

DiT has other key names, separate q, k and v, a copy of both embedders in every block, and no positions, which diffusers
recomputes. Its timestep frequencies are 10000^(-i/127), and DiT's are 10000^(-i/128) (`frequency_shift`), so that a
model trained with one of them generates slightly different images with the other.
"""

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ditlab.backbones import BACKBONES, Backbone, create
from ditlab.backbones.flux_layouts import DIFFUSERS_LENGTH as FLUX_LENGTH
from ditlab.backbones.inputs import SCALE
from ditlab.backbones.mmdit_layouts import DIFFUSERS_LENGTH
from ditlab.backbones.positions import sincos_positions
from ditlab.conditioning import Text
from ditlab.conditioning.encoders import NoEncoder
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.modules import skip_init
from ditlab.core.weights import read_file, read_json
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.parametrizations import read_objective
from ditlab.diffusion.process import DDPM, process_name
from ditlab.inference.pipeline import Pipeline

# ditlab (and official) name -> diffusers name; {i} is the index of the block.
NAMES = {
    "x_embedder.proj": "pos_embed.proj",
    "blocks.{i}.attn.proj": "transformer_blocks.{i}.attn1.to_out.0",
    "blocks.{i}.mlp.fc1": "transformer_blocks.{i}.ff.net.0.proj",
    "blocks.{i}.mlp.fc2": "transformer_blocks.{i}.ff.net.2",
    "blocks.{i}.adaLN_modulation.1": "transformer_blocks.{i}.norm1.linear",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
COPIED = {  # diffusers has a copy in every block
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = {  # DiT's process, sampled with DDIM and the strides of DiT's code
    "_class_name": "DDIMScheduler",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "timestep_spacing": "leading",
}
SHIFT_OF_SD3 = 3.0
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
DYNAMIC = {  # the shift of Flux.1 dev
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "time_shift_type": "exponential",
}
SCHEDULERS = {  # class of the transformer -> its scheduler
    "SD3Transformer2DModel": {
        "_class_name": FLOW_SCHEDULER,
        "num_train_timesteps": 1000,
        "shift": SHIFT_OF_SD3,
    },
    "FluxTransformer2DModel": {
        "_class_name": FLOW_SCHEDULER,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
    },
}
PIPELINES: dict[str, tuple[str, dict[str, Any]]] = {  # class of the transformer -> its pipeline, and its defaults
    "DiTTransformer2DModel": ("diffusers' DiTPipeline", {"guidance": 4.0}),  # on all channels
    "SD3Transformer2DModel": (
        "diffusers' StableDiffusion3Pipeline",
        {"guidance": 7.0, "steps": 28, "sampler": "euler", "schedule": "sd3"},
    ),
}
OLD_NAMES = {
    "ada_norm_single": "PixArtTransformer2DModel"
}  # norm_type of a Transformer2DModel -> class that replaced it
SHIFT = "_frequency_shift"  # ditlab's key in diffusers' config; diffusers ignores keys that begin with an underscore
FLUX_NAMED = re.compile(r"(?:.*/)?FLUX\.1-(dev|schnell)")
SD3_NAMED = re.compile(r"(?:.*/)?stable-diffusion-(3|3\.5)-(medium|large)(?:-.*)?")
NAMED = re.compile(r"(?:.*/)?DiT-(S|B|L|XL)-([248])(?:-.*)?")
QKV = re.compile(r"transformer_blocks\.(\d+)\.attn1\.to_q\.(weight|bias)")


def to_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename official keys to diffusers' keys; no values are copied except for the embedders."""
    depth = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, kind = key.rsplit(".", 1) if "." in key else (key, "")
        number = stem.split(".")[1] if stem.startswith("blocks.") else ""
        pattern = stem.replace(f"blocks.{number}.", "blocks.{i}.", 1) if number else stem
        if key == "pos_embed":
            continue
        if stem in COPIED:
            names = [f"transformer_blocks.{i}.norm1.emb.{COPIED[stem]}.{kind}" for i in range(depth)]
            # Cloned, because tensors of a safetensors file must not share memory.
            out |= {name: value.clone() if i else value for i, name in enumerate(names)}
        elif pattern == "blocks.{i}.attn.qkv":
            for name, part in zip("qkv", value.chunk(3), strict=True):
                out[f"transformer_blocks.{number}.attn1.to_{name}.{kind}"] = part
        else:
            out[f"{NAMES[pattern].replace('{i}', number)}.{kind}"] = value
    return out


def from_diffusers(tensors: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Rename diffusers' keys to official keys, and add the positions for the input size (height, width).

    Raises:
        InputError: an unknown key, or embedders that differ between blocks because they were fine-tuned separately.
    """
    official = {name: ours for ours, name in NAMES.items()}
    embedders = {name: ours for ours, name in COPIED.items()}
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, kind = key.rsplit(".", 1)
        number = stem.split(".")[1] if stem.startswith("transformer_blocks.") else ""
        pattern = stem.replace(f"transformer_blocks.{number}.", "transformer_blocks.{i}.", 1) if number else stem
        copied = pattern.removeprefix("transformer_blocks.{i}.norm1.emb.")
        if QKV.fullmatch(key):
            parts = [tensors[key.replace("to_q", f"to_{name}")] for name in "qkv"]
            out[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
        elif pattern in ("transformer_blocks.{i}.attn1.to_k", "transformer_blocks.{i}.attn1.to_v"):
            continue
        elif copied in embedders:
            name = f"{embedders[copied]}.{kind}"
            if not torch.equal(out.setdefault(name, value), value):
                raise InputError(f"{key} differs from its copy in block 0; DiT has one embedder for all blocks")
        elif pattern in official:
            out[f"{official[pattern].replace('{i}', number)}.{kind}"] = value
        else:
            raise InputError(f"{key} is no key of a DiT; give a DiTTransformer2DModel")
    width, _, patch, _ = out["x_embedder.proj.weight"].shape
    out["pos_embed"] = sincos_positions(size[0] // patch, size[1] // patch, width)
    return out


def read_transformer(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a diffusers transformer folder.

    Returns:
        Tensors under official keys, and the arguments of `ditlab.create` that the tensors do not determine.

    Raises:
        InputError: another class of model, a missing shard, or a damaged file.
    """
    config = read_json(folder / CONFIG)
    name = config.get("_class_name")
    name = OLD_NAMES.get(str(config.get("norm_type")), name) if name == "Transformer2DModel" else name
    family = next((kind for kind in BACKBONES.values() if kind.diffusers_class and kind.diffusers_class == name), None)
    if family is not None:
        tensors = read_shards(folder)
        with interpreting(folder, "download the whole folder again"):
            return family.from_diffusers(tensors, config)
    if config.get("_class_name") not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise InputError(f"{folder} holds a {config.get('_class_name')}; give a DiTTransformer2DModel")
    if config.get("norm_type") != "ada_norm_zero":
        raise InputError(f"{folder} has norm_type {config.get('norm_type')}; only ada_norm_zero is supported")
    tensors = read_shards(folder)
    with interpreting(folder / CONFIG, "download the whole folder again"):
        side, heads = int(config["sample_size"]), int(config["num_attention_heads"])
        overrides = {"size": (side, side), "heads": heads, "frequency_shift": config.get(SHIFT, 1)}
    with (
        interpreting(folder, "download the whole folder again"),
        skip_init(tensors, f"{folder / CONFIG} with sample_size {side}"),  # for the positions, which are no weights
    ):
        return from_diffusers(tensors, (side, side)), overrides


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a folder, which may be in several files.

    Raises:
        InputError: a missing shard, or a damaged file.
    """
    index = folder / f"{WEIGHTS}.index.json"
    shards = [WEIGHTS]
    if index.exists():
        content = read_json(index)
        with interpreting(index, "download the whole folder again"):
            shards = sorted({str(shard) for shard in content["weight_map"].values()})
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not (folder / shard).exists():
            raise InputError(f"{folder / shard} is missing; download the whole folder")
        tensors |= read_file(folder / shard)
    return tensors


def scheduler_of(net: Backbone) -> dict[str, Any] | None:
    """Return the scheduler_config.json of a network that diffusers samples; None if it is not known."""
    scheduler = SCHEDULERS.get(net.diffusers_class)
    if SCALE in net.inputs and scheduler is not None:  # Flux.1 dev
        return scheduler | {"shift": 3.0, "use_dynamic_shifting": True} | DYNAMIC
    return scheduler


def with_schedule(sampling: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return sampling settings with the schedule of the scheduler in a pipeline folder, if it has one of flow matching.

    Raises:
        InputError: a dynamic shift other than that of Flux.1.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    content = read_json(file) if file.is_file() else {}
    if content.get("_class_name") != FLOW_SCHEDULER:
        return sampling
    with interpreting(file, "download the whole folder again"):
        shift = float(content.get("shift", 1.0))
    if sampling.get("schedule") == "sd3":
        return sampling if shift == SHIFT_OF_SD3 else sampling | {"shift": shift}
    if content.get("use_dynamic_shifting"):
        given = {key: content.get(key, value) for key, value in DYNAMIC.items()}
        if different := ", ".join(f"{key} {value}" for key, value in given.items() if value != DYNAMIC[key]):
            raise InputError(f"{file} has a dynamic shift with {different}; only that of Flux.1 is supported")
        return sampling | {"schedule": "flux"}
    if shift == 1:
        return sampling | {"schedule": "uniform"}
    return sampling | {"schedule": "shifted", "shift": shift}


def transformer_config(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the ditlab config of a network to diffusers' config.json.

    Raises:
        InputError: diffusers' DiTTransformer2DModel does not support this network.
    """
    if not config["name"].startswith("DiT"):
        raise InputError(f"{config['name']} has no diffusers layout; convert to ditlab instead")
    height, width = config["size"]
    if height != width:
        raise InputError(
            f"size {height}x{width} is not square; diffusers' DiT is always square; convert to ditlab or official"
        )
    if config.get("text_length"):
        raise InputError("diffusers' DiT reads no text; convert to ditlab instead")
    if config["classes"] == 0:
        raise InputError("diffusers' DiT cannot be unconditional; convert to ditlab or official instead")
    return {
        "_class_name": "DiTTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config["width"] // config["heads"],
        "in_channels": config["channels"],
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": config["heads"],
        "num_embeds_ada_norm": config["classes"],
        "num_layers": config["depth"],
        "out_channels": config["channels"] * (2 if config["learn_variance"] else 1),
        "patch_size": config["patch"],
        "sample_size": height,
        SHIFT: config.get("frequency_shift") or 0,
    }


def check_pipeline(pipe: Pipeline) -> None:
    """Check that diffusers has the options of a DiT, and samples with its process and target.

    Raises:
        InputError: it does not; the message names recipes whose models diffusers can run.
    """
    remedy = (
        "convert to ditlab, or train a model that diffusers can run: see the recipes digits-diffusers and "
        "own-latent-diffusers"
    )
    for key, value in pipe.net.published.items():
        present = pipe.net.config.get(key)
        if present is not None and (present or False) != (value or False):
            raise InputError(f"diffusers' DiT has {key} = {value} only, and this model {present}; {remedy}")
    process, target = process_name(pipe.objective.process), pipe.objective.target
    if pipe.objective.process != DDPM() or target != "eps":
        raise InputError(
            f"diffusers' DiTPipeline needs the target eps on the ddpm process, and this model has {target} on "
            f"{process}; {remedy}"
        )


def model_index(classes: list[str]) -> dict[str, Any]:
    """Return diffusers' model_index.json of a pipeline with these class names."""
    parts = {"scheduler": "DDIMScheduler", "transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL"}
    index: dict[str, Any] = {"_class_name": "DiTPipeline", "_diffusers_version": "0.35.0"}
    if classes:
        index["id2label"] = {str(i): name for i, name in enumerate(classes)}
    return index | {name: ["diffusers", kind] for name, kind in parts.items()}


def as_diffusers(net: Backbone) -> nn.Module:
    """Build diffusers' DiTTransformer2DModel of a network, with shared weights.

    Raises:
        InputError: diffusers has no such network, or is not installed.
    """
    values = {key: net.config.get(key, value) or False for key, value in net.published.items()}
    if type(net) is not BACKBONES["DiT"] or values != dict(net.published):
        raise InputError(
            f"diffusers has no equivalent of {net.config['name']} with these options; compare with another runtime"
        )
    try:
        import diffusers
    except ImportError:
        raise InputError("the comparison with diffusers needs diffusers; pip install 'ditlab[vae]'") from None
    config = net.config
    with torch.device("meta"):
        other: Any = diffusers.DiTTransformer2DModel(  # type: ignore[no-untyped-call]
            num_attention_heads=config["heads"],
            attention_head_dim=config["width"] // config["heads"],
            in_channels=net.channels,
            out_channels=net.out_channels,
            num_layers=config["depth"],
            sample_size=net.size[0],
            patch_size=config["patch"],
            num_embeds_ada_norm=net.classes,
        )
    other = other.to_empty(device=net.device)
    missing = other.load_state_dict(to_diffusers(dict(net.state_dict())), strict=False).missing_keys
    assert missing in ([], ["pos_embed.pos_embed"]), missing
    other.pos_embed.pos_embed.copy_(net.get_buffer("pos_embed"))  # not a parameter, so that it has no values yet
    return cast(nn.Module, other.eval())


def outline(hub_id: str) -> Pipeline | None:
    """Describe a published model by the name of its hub repository, without its weights.

    Args:
        hub_id: such as "facebook/DiT-XL-2-256", "stabilityai/stable-diffusion-3.5-medium" or
            "black-forest-labs/FLUX.1-dev".

    Returns:
        A model on the meta device, which has sizes and objective but no values; None for other names.
    """
    if (sd3 := SD3_NAMED.fullmatch(hub_id)) is not None:
        return _outline_with_text(f"MMDiT-SD{sd3[1]}-{sd3[2]}", text_length=DIFFUSERS_LENGTH)
    if (flux := FLUX_NAMED.fullmatch(hub_id)) is not None:
        return _outline_with_text(f"Flux-{flux[1]}", text_length=FLUX_LENGTH, unit_time=True)
    match = NAMED.fullmatch(hub_id)
    if match is None:
        return None
    with torch.device("meta"):
        net = create(f"DiT-{match[1]}/{match[2]}", learn_variance=True, frequency_shift=1)
    return Pipeline(net, Objective(DDPM(), "eps", learn_variance=True))


def _outline_with_text(name: str, **options: Any) -> Pipeline:
    with torch.device("meta"):
        net = create(name, **options)
    text = Text(NoEncoder(net.text.length, net.text.width, net.text.pooled).config)
    return Pipeline(net, read_objective(net.read_objective(net.config)), conditioner=text)
