"""A pipeline folder of Stable Diffusion 3 generates what diffusers generates with it."""

import json

import numpy as np
import pytest
import torch
from sd3_folder import pipeline

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.types import TextShape

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
PROMPT, NEGATIVE = "a red apple on a blue square", "square"
SKIPPED = {"skip_guidance_layers": [0], "skip_layer_guidance_scale": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder, and diffusers' pipeline."""
    path, theirs = tmp_path_factory.mktemp("sd3") / "pipeline", pipeline()
    theirs.save_pretrained(path)
    theirs.set_progress_bar_config(disable=True)
    return path, theirs


@pytest.fixture(scope="module")
def pipe(folder):
    return ditlab.load(folder[0])


def test_what_is_read(pipe):
    assert (pipe.shape, pipe.autoencoder.config["scale"], pipe.autoencoder.config["shift"]) == (
        (16, 8, 8),
        1.5305,
        0.0609,
    )
    defaults = pipe.defaults
    assert (defaults.steps, defaults.sampler, defaults.schedule, defaults.guidance) == (28, "euler", "sd3", 7.0)
    assert pipe.conditioner.encoder.shape == pipe.net.text == TextShape(333, 32, pooled=20)


@pytest.mark.slow
@pytest.mark.parametrize("further", [{}, {"negative_prompt": NEGATIVE}, SKIPPED])
def test_the_same_image_as_diffusers(folder, pipe, further):
    options = {"num_inference_steps": 10, "guidance_scale": 5.0, **further}
    theirs = folder[1](
        PROMPT, height=16, width=16, generator=torch.Generator().manual_seed(3), output_type="np", **options
    ).images[0]
    latents = pipe([PROMPT], seeds=[3], output_type="latent", **options).images
    constants = pipe.autoencoder.config
    with torch.no_grad():
        ours = pipe.autoencoder.pictures(latents / constants["scale"] + constants["shift"])[0]
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    assert ours.std() > 0.1
    assert np.abs(ours - theirs).max() < 1e-4
    image = np.asarray(pipe([PROMPT], seeds=[3], **options).images[0])
    assert np.abs(image - theirs * 255).max() < 0.51


def test_another_size_has_the_positions_and_the_image_of_diffusers(folder, pipe):
    options = {"num_inference_steps": 2, "guidance_scale": 5.0}
    theirs = folder[1](
        PROMPT, height=12, width=20, generator=torch.Generator().manual_seed(3), output_type="np", **options
    ).images[0]
    shift = folder[1].scheduler.config.shift  # which the pipeline keeps for every size
    image = np.asarray(pipe([PROMPT], seeds=[3], size=(12, 20), shift=shift, **options).images[0])
    assert np.abs(image - theirs * 255).max() < 0.51
    most = pipe.net.position_side * pipe.net.patch * pipe.autoencoder.stride
    for size, line in (
        ((12, most + 4), f"size 12x{most + 4}; this model has positions for sides up to {most}"),
        ((12, 18), "size 12x18; sides must be multiples of 4: give 12x16, the nearest one"),
    ):
        with pytest.raises(InputError) as caught:
            pipe([PROMPT], seeds=[3], size=size)
        assert str(caught.value) == line


def test_settings_matter(pipe):
    options = {"seeds": [3], "steps": 10, "output_type": "latent"}
    first = pipe([PROMPT], **options).images
    for further in ({"negative_prompt": NEGATIVE}, SKIPPED, {"schedule": "shifted"}, {"shift": 1.0}):
        assert (pipe([PROMPT], **options, **further).images - first).abs().max() > 1e-3


def test_it_is_saved_and_loaded_as_a_model_of_ditlab(pipe, tmp_path):
    pipe.save(tmp_path / "model")
    again = ditlab.load(tmp_path / "model")
    options = {"seeds": [3], "steps": 2, "output_type": "latent"}
    assert torch.equal(again([PROMPT], **options).images, pipe([PROMPT], **options).images)


@pytest.mark.slow
def test_the_shift_of_the_scheduler(folder, tmp_path):
    (tmp_path / "scheduler").mkdir()
    content = json.loads((folder[0] / "scheduler" / "scheduler_config.json").read_text()) | {"shift": 2.5}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(content))
    (tmp_path / "transformer").symlink_to(folder[0] / "transformer")
    pipe = ditlab.load(tmp_path)
    assert pipe.defaults.shift == 2.5
    words = "this model has no text encoder; load the pipeline folder that has one, or call pipe.net with a Condition"
    with pytest.raises(InputError, match=words):
        pipe([PROMPT], output_type="latent")


def test_encoders_of_another_model(folder, tmp_path):
    for part in folder[0].iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "text_encoder_2").unlink()
    (tmp_path / "text_encoder_2").symlink_to(folder[0] / "text_encoder")
    with pytest.raises(
        InputError, match=r"give 333 tokens of 32 values and a pooled vector of 16, and the transformer"
    ):
        ditlab.load(tmp_path)
