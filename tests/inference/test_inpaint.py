import io

import pytest
import torch
from helpers import relative, tiny_pipeline
from PIL import Image, ImageDraw

from ditlab import between
from ditlab.conditioning import ClassLabels
from ditlab.core.errors import InputError
from ditlab.core.types import Between, Prediction
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import Cosine, Linear
from ditlab.diffusion.samplers import SAMPLERS, image_noise, time_grid
from ditlab.inference.inpaint import Original, read_image


@pytest.fixture
def pipe():
    return tiny_pipeline()


def picture(side=8, value=200):
    image = Image.new("L", (side, side), value)
    ImageDraw.Draw(image).rectangle((0, 0, side // 2 - 1, side // 2 - 1), fill=30)
    return image


def right_half(side=8):
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rectangle((side // 2, 0, side - 1, side - 1), fill=255)
    return mask


def draw(pipe, *args, **options):
    return pipe(*args, output_type="latent", num_inference_steps=4, **options).images


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("resample", [1, 3])
def test_what_the_mask_keeps_stays_with_every_sampler(pipe, sampler, resample):
    options = {"image": picture(), "mask_image": right_half(), "sampler": sampler, "resample": resample}
    x0 = draw(pipe, [0, 1], seeds=[0, 1], guidance_scale=2.0, **options)
    kept = pipe.original(picture()).x0
    assert torch.allclose(x0[..., :4], kept[..., :4].expand(2, -1, -1, -1), atol=1e-4)
    assert (x0[..., 4:] - kept[..., 4:]).abs().mean() > 0.1
    assert not torch.allclose(x0[0, :, :, 4:], x0[1, :, :, 4:], atol=1e-2)


def test_kept_pixels_are_exactly_those_of_the_image(pipe):
    drawn = pipe(0, image=picture(), mask_image=right_half(), num_inference_steps=2).images[0]
    assert drawn.crop((0, 0, 4, 8)).tobytes() == picture().crop((0, 0, 4, 8)).tobytes()


def pair_denoiser(process, correlation):
    """Exact, for two pixels of unit variance that are correlated."""
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)

    def denoise(x, t, s=None):
        alpha, sigma = process.alpha(t), process.sigma(t)
        of_x = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        flat = x.double().flatten(1)
        x0 = alpha * flat @ torch.linalg.solve(of_x, covariance)
        eps = (flat - alpha * x0) / sigma
        return Prediction(x0.view_as(x).to(x.dtype), eps.view_as(x).to(x.dtype))

    return denoise


def painted(resample):
    """The second pixel, drawn to a first one that is 1."""
    process, count = Cosine(), 2000
    known = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    mask = torch.tensor([False, True]).view(1, 1, 1, 2)
    original = Original(known, known, mask, 1.0, resample)
    noise = torch.randn_like
    x = noise(torch.empty(count, 1, 1, 2))
    held = original.holding(pair_denoiser(process, 0.9), process)
    for step in original.walk(SAMPLERS["ddpm"], held, process, x, time_grid("uniform", process, 60), noise):
        last = step.x
    return step.i, last[:, 0, 0, 1]


def test_resampling_makes_the_new_agree_with_the_old():
    """Given a first pixel of 1, the second is 0.9 on average, with a deviation of sqrt(1 - 0.9^2) = 0.436."""
    (calls, once), (more_calls, often) = painted(1), painted(6)
    assert (calls, more_calls) == (59, 359)
    assert abs(often.mean() - 0.9) < 0.05 < abs(once.mean() - 0.9)
    assert abs(often.std() - 0.436) < abs(once.std() - 0.436)


def test_strength_is_the_part_of_the_trajectory(pipe):
    start = pipe.original(picture(), strength=0.5)
    steps = list(pipe.steps(0, seeds=3, num_inference_steps=8, original=start))
    plain = list(pipe.steps(0, seeds=3, num_inference_steps=8))
    assert [step.t for step in steps] == [step.t for step in plain][4:]
    assert len(steps) == pipe.resolve(steps=8, original=start).steps == 4


def test_full_strength_is_noise_alone_where_the_path_ends_in_noise(pipe):
    assert isinstance(pipe.objective.process, Linear)
    assert torch.equal(draw(pipe, 1, seeds=4, image=picture(), strength=1.0), draw(pipe, 1, seeds=4))


def test_a_weaker_change_stays_nearer(pipe):
    x0 = pipe.original(picture()).x0
    distances = [relative(draw(pipe, 1, seeds=4, image=picture(), strength=s), x0) for s in (0.25, 0.5, 0.75)]
    assert distances == sorted(distances)
    assert distances[0] < distances[2] / 2


def test_each_image_may_have_its_own_and_batches_do_not_matter(pipe):
    images, masks = [picture(value=v) for v in (100, 180, 250)], [right_half()] * 3
    options = {"seeds": [1, 2, 3], "image": images, "mask_image": masks}
    together = draw(pipe, [0, 1, 2], **options)
    assert torch.allclose(together, draw(pipe, [0, 1, 2], batch_size=2, **options), atol=1e-5)
    alone = draw(pipe, [2], seeds=[3], image=images[2], mask_image=masks[2])
    assert torch.allclose(together[2:], alone, atol=1e-5)


def test_a_position_of_a_latent_is_regenerated_if_any_of_its_pixels_is():
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, 1, 3] = True
    x0 = torch.ones(1, 1, 2, 2)
    original = Original(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), x0, mask, 1.0, 1)
    held = original.holding(lambda x, t, s: Prediction(x * 0, x * 0), Linear())
    x0 = held(torch.zeros(1, 1, 2, 2), torch.tensor(0.5), torch.tensor(0.4)).x0[0, 0]
    assert x0.tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.75])
def test_noise_between_two_seeds_is_gaussian_and_turns(weight):
    shape = torch.empty(1, 4, 64, 64)
    noise = image_noise([Between(1, 2, weight)])(shape)
    assert abs(noise.std() - 1) < 0.02
    first, second = image_noise([1])(shape), image_noise([2])(shape)
    angle = torch.tensor(weight) * torch.pi / 2
    assert torch.allclose(noise, torch.cos(angle) * first + torch.sin(angle) * second, atol=1e-6)


def test_interpolations_begin_and_end_with_the_plain_images(pipe):
    seeds = draw(pipe, 1, seeds=between(3, 8, 5))
    assert torch.allclose(seeds[[0, 4]], draw(pipe, 1, seeds=[3, 8]), atol=1e-5)
    labels = draw(pipe, between(0, "class 2", 5), seeds=3, guidance_scale=2.0)
    assert torch.allclose(labels[[0, 4]], draw(pipe, [0, 2], seeds=3, guidance_scale=2.0), atol=1e-5)
    steps = (labels[1:] - labels[:-1]).flatten(1).norm(dim=1)
    assert steps.max() < (labels[4] - labels[0]).norm() < steps.sum() + 1e-5


def test_predictions_of_two_labels_are_mixed_row_by_row():
    asked = []

    def net(x, timestep, condition):
        asked.append(condition.label.tolist())
        return condition.label.float()[:, None, None, None].expand_as(x)

    denoiser = Objective(Linear(), "x0").denoiser(net)
    condition = ClassLabels(9).encode([3, Between(2, 6, 0.25), None, Between(4, 8, 0.5)])
    found = denoiser(torch.zeros(4, 1, 1, 1), torch.tensor(0.5), torch.tensor(0.0), condition)
    assert found.x0.flatten().tolist() == [3, 3, 9, 6]
    assert found.eps.flatten().tolist() == [-3, -3, -9, -6]
    assert asked == [[3, 2, 9, 4, 6, 8]]  # rows at one label are computed once


def test_labels_between_do_not_depend_on_their_batch(pipe):
    labels = [1, *between(0, 2, 3), None]
    options = {"seeds": range(5), "guidance_scale": 2.0}
    together, split = draw(pipe, labels, **options), draw(pipe, labels, batch_size=2, **options)
    assert torch.allclose(together, split, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"image": picture(), "strength": 0.0}, "strength 0.0; give more than 0"),
        ({"image": picture(), "strength": 1.5}, "strength 1.5"),
        ({"image": picture(), "resample": 3}, "resample 3; give 1 or more with a mask"),
        ({"image": picture(), "mask_image": Image.new("L", (8, 8))}, "the mask is black"),
        ({"image": [picture()] * 3}, "3 images to start from for 2 generated images"),
        ({"image": [picture()] * 3, "mask_image": [right_half()] * 2}, "2 masks for 3 images"),
        ({"strength": 0.5}, "need an image to start from"),
        ({"image": picture(), "mask_image": right_half(), "reuse": 2}, "leave one of them out"),
    ],
)
def test_bad_input_has_one_clear_line(pipe, options, line):
    with pytest.raises(InputError, match=line):
        pipe([0, 1], seeds=[0, 1], **options)


def test_points_beyond_the_interpolation_are_rejected(pipe):
    with pytest.raises(InputError, match=r"a weight of 1.5 between two values; give 0 to 1"):
        pipe([Between(0, 1, 1.5)])
    with pytest.raises(InputError, match="seed -1 is out of range"):
        pipe(0, seeds=Between(-1, 1, 0.5))
    with pytest.raises(InputError, match="unknown class"):
        pipe([Between(0, "nothing", 0.5)])


def test_images_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no image"):
        read_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be read as PNG"):
        read_image(tmp_path / "text.png")
    content = io.BytesIO()
    Image.new("1", (9000, 9000)).save(content, format="PNG")
    with pytest.raises(InputError, match="9000x9000 pixels; give one of at most 64,000,000"):
        read_image(content)


def test_an_image_that_is_too_narrow_to_be_resized_is_refused(pipe):
    line = (
        "the image has 1000001x1 pixels, and would have 8000008x8 when it is resized to cover 8x8; crop it to at most "
        "64,000,000 pixels in all"
    )
    with pytest.raises(InputError) as raised:
        pipe(0, image=Image.new("L", (1_000_001, 1)))
    assert str(raised.value) == line
    assert pipe(0, image=Image.new("L", (100_000, 1)), num_inference_steps=2).images[0].size == (8, 8)
