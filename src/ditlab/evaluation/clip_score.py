"""CLIP score: how well images fit their prompts, by a CLIP that the user has (Hessel et al., "CLIPScore", EMNLP 2021).

The score of an image is 100 times the cosine between its embedding and that of its prompt, or 0 if that is negative.
It depends on the CLIP: compare only scores of one, and look at the score of real images with their captions.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ditlab.conditioning.encoders.pretrained import library, loading, source
from ditlab.core.errors import InputError
from ditlab.core.units import counted

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
BATCH = 64


class ClipScore:
    """Scores images and prompts with a CLIP of the transformers library.

    Args:
        place: folder or hub id of the CLIP.
        device: where it runs.

    Raises:
        InputError: transformers is not installed, or there is no CLIP.
    """

    def __init__(self, place: str, device: torch.device | str = "cpu") -> None:
        transformers = library()
        with loading(place, transformers, "CLIP"):
            config = transformers.AutoConfig.from_pretrained(source(place, "CLIP"))
            if config.model_type != "clip":
                raise InputError(f"{place} is a model of type {config.model_type}; give a CLIP")
            self.net = transformers.CLIPModel.from_pretrained(source(place, "CLIP"), dtype=torch.float32)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(source(place, "CLIP"))
        self.net = self.net.eval().requires_grad_(False).to(device)
        self.side = int(config.vision_config.image_size)
        self.length = int(config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores (N,), 0..100, of images (N, 3, H, W) uint8 and their prompts.

        Raises:
            InputError: the numbers of images and prompts differ, or images are not RGB.
        """
        if len(images) != len(prompts):
            counts = f"{counted(len(images), 'image')} and {counted(len(prompts), 'prompt')}"
            raise InputError(f"{counts}; give one prompt for each image")
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images of shape {tuple(images.shape)}; give RGB images (N, 3, H, W)")
        starts = range(0, len(images), BATCH)
        return torch.cat([self._scores(images[i : i + BATCH], prompts[i : i + BATCH]) for i in starts])

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        device = self.net.device
        words = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        ).to(device)  # fmt: skip
        given = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}
        text = vectors(self.net.get_text_features(**given))
        seen = vectors(self.net.get_image_features(pixel_values=self._pixels(images).to(device)))
        return 100 * F.cosine_similarity(seen, text).clamp(min=0).cpu()

    def _pixels(self, images: Tensor) -> Tensor:
        """Images as CLIP reads them: the short side resized, the middle square, normalized."""
        pixels, (height, width) = images.float() / 255, images.shape[2:]
        scale = self.side / min(height, width)
        size = [max(self.side, round(side * scale)) for side in (height, width)]
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((side - self.side) // 2 for side in size)
        pixels = pixels[:, :, top : top + self.side, left : left + self.side]
        return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SPREAD)[:, None, None]


def vectors(output: Any) -> Tensor:
    """The embeddings (N, D) that transformers returns, as a tensor or in an output."""
    tensor: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return tensor
