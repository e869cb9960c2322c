"""Nodes for ComfyUI: load a model of ditlab, and generate images with it.

Copy this file to ComfyUI/custom_nodes/, and install ditlab into the Python environment of ComfyUI. The nodes are in the
category "ditlab". Labels and prompts are separated by lines, and each of them gets `count` images.
"""

import torch

import ditlab


class DitlabLoad:
    """Load a run folder, a saved model, an external checkpoint or a hub id."""

    CATEGORY, FUNCTION, RETURN_TYPES = "ditlab", "load", ("DITLAB_MODEL",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802  (the name that ComfyUI expects)
        """Inputs of the node."""
        return {"required": {"path": ("STRING", {"default": "runs/demo"})}}

    def load(self, path):
        """Return the model, prepared for fast inference."""
        return (ditlab.load(path).prepared(),)


class DitlabGenerate:
    """Generate images for labels or prompts."""

    CATEGORY, FUNCTION, RETURN_TYPES = "ditlab", "generate", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """Inputs of the node; 0 steps and a guidance of 0 are the defaults of the model."""
        required = {
            "model": ("DITLAB_MODEL",),
            "labels": ("STRING", {"multiline": True, "default": ""}),
            "seed": ("INT", {"default": 0, "min": 0, "max": 2**53 - 1}),
            "count": ("INT", {"default": 4, "min": 1, "max": 256}),
            "steps": ("INT", {"default": 0, "min": 0, "max": 1000}),
            "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 30.0, "step": 0.1}),
        }
        return {"required": required, "optional": {"negative_prompt": ("STRING", {"default": ""})}}

    def generate(self, model, labels, seed, count, steps, guidance, negative_prompt=""):
        """Return images (B, H, W, 3) from 0 to 1; the frames of clips are images of one batch."""
        names = [line.strip() for line in labels.splitlines() if line.strip()] or [None]
        images = model(
            [name for name in names for _ in range(count)],
            seeds=list(range(seed, seed + count)) * len(names),
            steps=steps or None,
            guidance=guidance or None,
            negative_prompt=negative_prompt or None,
            output_type="np",
        ).images
        images = torch.from_numpy(images).flatten(0, -4)
        return (images.expand(*images.shape[:-1], 3) if images.shape[-1] == 1 else images,)


NODE_CLASS_MAPPINGS = {"DitlabLoad": DitlabLoad, "DitlabGenerate": DitlabGenerate}
NODE_DISPLAY_NAME_MAPPINGS = {"DitlabLoad": "Load ditlab model", "DitlabGenerate": "Generate with ditlab"}
