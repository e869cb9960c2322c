"""DINOv2 features (Oquab et al. 2023), in which FD-DINOv2 is measured (Stein et al. 2023; Karras et al. 2024).

The network is that of transformers. The image preprocessing is implemented here, so that torchvision is not needed.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from ditlab.core.errors import InputError
from ditlab.core.spelling import expand
from ditlab.core.weights import state_hash
from ditlab.data.latents.features import ImageFeatures
from ditlab.evaluation.features.base import Extracted, Features

DEFAULT = "facebook/dinov2-large"  # ViT-L/14, which published distances use
SIDE = 224  # pixels
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DinoV2(Features):
    """The class token of DINOv2 after the last normalization, as features."""

    name = "dinov2"

    def __init__(self, net: Any, device: torch.device | None = None) -> None:
        """Wrap a `transformers.Dinov2Model`, which is changed in place."""
        self.weights = state_hash(net)
        self.dimension = net.config.hidden_size
        embeddings = net.embeddings
        resampled = positions(embeddings.position_embeddings.detach(), SIDE // net.config.patch_size)
        embeddings.position_embeddings = nn.Parameter(resampled)
        self.net = net.to(device or "cpu").eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: str = "", device: torch.device | None = None) -> "DinoV2":
        """Load the network from a folder or from the hub.

        Args:
            weights: a folder that transformers saved, or a hub id (default: facebook/dinov2-large).
            device: device of the network (default: the CPU).

        Raises:
            InputError: transformers is not installed, the hub cannot be reached, or the model is not a DINOv2 model.
        """
        return cls(read(weights or DEFAULT), device)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Extracted:
        """Features of uint8 images (B, 1 or 3, H, W) of any size, in float32."""
        return Extracted(self.states(images)[:, 0].cpu())

    @torch.no_grad()
    def states(self, images: Tensor) -> Tensor:
        """Last states (B, 1 + s^2, E) of the class token and the patches of uint8 images (B, 1 or 3, H, W)."""
        x = images.to(self.device).float().expand(-1, 3, -1, -1) / 255
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
        x = x.clamp(0, 1)  # as in PIL, whose integers cannot overshoot
        x = (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(DEVIATION)[:, None, None]
        states: Tensor = self.net(pixel_values=x).last_hidden_state
        return states

    def image_features(self, source: str) -> ImageFeatures:
        """Describe the features of patches, for a latent cache.

        Args:
            source: the folder or hub id from which the network was loaded.
        """
        side = SIDE // int(self.net.config.patch_size)
        about = {"encoder": self.weights, "source": source, "width": int(self.dimension), "side": side}
        return ImageFeatures(about, self.maps)

    def maps(self, images: Tensor) -> Tensor:
        """Last states (B, E, s, s) of the patches of uint8 images (B, 1 or 3, H, W), float32."""
        with torch.autocast(self.device.type, enabled=False):
            patches = self.states(images)[:, 1:]
        side = math.isqrt(patches.shape[1])
        return torch.unflatten(patches.mT, 2, (side, side))


def read(source: str) -> Any:
    """Load the `Dinov2Model` of a folder or hub id in float32.

    Raises:
        InputError: the model cannot be loaded, or is not a DINOv2 model.
    """
    transformers, remedy = transformers_library(), f"give a folder with a download of {DEFAULT} as feature weights"
    folder = Path(expand(source))
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise InputError(f"{source} is neither a folder nor a hub id; {remedy}")
    source = str(folder) if folder.is_dir() else source
    logging = transformers.utils.logging
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the error below reports problems in one line
    try:
        model_type = transformers.Dinov2Config.get_config_dict(source)[0].get("model_type", "unknown")
        if model_type != "dinov2":  # transformers would initialize missing weights at random
            raise InputError(f"{source} is not a DINOv2 model (model_type: {model_type}); {remedy}")
        net, info = transformers.Dinov2Model.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{source} cannot be loaded ({reason}); {remedy}") from None
    finally:
        logging.set_verbosity(level)
    if wrong := [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]:
        raise InputError(f"{source} does not hold {min(wrong)} in the shape that its config.json implies; {remedy}")
    return net.float()


def positions(table: Tensor, side: int) -> Tensor:
    """Resize position embeddings (1, 1 + s^2, D) to (1, 1 + side^2, D).

    The published code adds 0.1 to the size (`interpolate_offset`), transformers does not; published distances use the
    published code.
    """
    trained = math.isqrt(table.shape[1] - 1)
    if trained == side:
        return table
    grid = table[:, 1:].mT.reshape(1, -1, trained, trained)  # (1, D, s, s)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / trained, mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).mT], 1)


def transformers_library() -> Any:
    """Import the transformers library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError("DINOv2 features need transformers; pip install 'ditlab[dino]'") from None
    return transformers
