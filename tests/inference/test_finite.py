"""Images that are not finite are errors everywhere, and seeds and hashes mean what they say."""

import json

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from rich.console import Console
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.autoencoders import create_autoencoder
from ditlab.core.errors import InputError
from ditlab.core.io import MANIFEST
from ditlab.diffusion.samplers import SAMPLERS, SCHEDULES, image_noise, time_grid
from ditlab.inference.export import export
from ditlab.inference.folder import sample_folder
from ditlab.inference.samples import Samples
from ditlab.profiling.bench import bench

OPTIONS = {"steps": 2, "sampler": "euler"}
WEIGHTS = (
    r"DiT-S/2: the image of seed 7 is not finite from step 1 of 2; its weights final_layer\.linear\.bias are not "
    "finite: use another checkpoint$"
)


def broken(**options):
    pipe = tiny_pipeline(**options)
    with torch.no_grad():
        pipe.net.final_layer.linear.bias[0] = torch.nan
    return pipe


class TestFinite:
    @pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
    def test_calls(self, output_type):
        with pytest.raises(InputError, match=WEIGHTS):
            broken()(0, seeds=7, output_type=output_type, **OPTIONS)

    @pytest.mark.parametrize("part", ["net", "autoencoder"])
    def test_such_weights_are_not_converted_exported_pushed_or_measured(self, tmp_path, part):
        pipe = tiny_pipeline()
        if part == "autoencoder":
            pipe.autoencoder = create_autoencoder(
                kind="patch", picture_channels=1, latent_channels=1, stride=2, width=8, depth=1
            )
        name, weights = list(getattr(pipe, part).named_parameters())[-1]
        with torch.no_grad():
            weights.view(-1)[0] = torch.inf
        name = name if part == "net" else f"autoencoder.{name}"
        for work in (
            lambda: ditlab.checkpoints.convert(pipe, tmp_path / "model", "ditlab"),
            lambda: export(pipe, tmp_path / "graphs", "torch"),
            lambda: bench(pipe, Console(quiet=True), batch=1),
            lambda: pipe.push_to_hub("me/model"),
        ):
            with pytest.raises(InputError) as caught:
                work()
            assert str(caught.value) == f"DiT-S/2: its weights {name} are not finite: use another checkpoint"
        assert not list(tmp_path.iterdir())

    def test_steps_raise_after_the_last_one(self):
        steps = broken().steps(0, seeds=7, **OPTIONS)
        assert [next(steps).i, next(steps).i] == [0, 1]
        with pytest.raises(InputError, match=WEIGHTS):
            next(steps)

    def test_a_folder_with_the_trajectory(self, tmp_path):
        with pytest.raises(InputError, match=WEIGHTS):
            sample_folder(
                broken(),
                [0],
                [7],
                tmp_path / "out",
                Console(quiet=True),
                batch_size=1,
                trajectory=True,
                options=OPTIONS,
            )

    def test_decoding_latents(self):
        latents = torch.zeros(3, 1, 8, 8)
        latents[1, 0, 2, 2] = torch.inf
        with pytest.raises(InputError, match=r"^DiT-S/2: the latents of image 1 are not finite; use other sampling"):
            tiny_pipeline().decode(latents)

    def test_finite_weights_in_another_precision(self):
        prepared = tiny_pipeline().prepared("bfloat16")
        with pytest.raises(InputError, match=r"the latents of image 0 are not finite; use float32$"):
            prepared.decode(torch.full((1, 1, 8, 8), torch.nan))

    def test_the_autoencoder(self):
        autoencoder = create_autoencoder(
            kind="patch", picture_channels=1, latent_channels=1, stride=2, width=8, depth=1
        )
        pipe = tiny_pipeline()
        pipe.autoencoder = autoencoder.eval()
        with torch.no_grad():
            for parameter in autoencoder.parameters():
                parameter.fill_(torch.nan)
        with pytest.raises(
            InputError, match="the patch autoencoder decoded latents to values that are not finite; use"
        ):
            pipe(0, **OPTIONS)

    def test_only_the_bad_image_is_named(self):
        pipe = tiny_pipeline()

        def sampler(denoise, process, x, schedule, noise):
            for step in SAMPLERS.find("euler")(denoise, process, x, schedule, noise):
                if step.i:
                    step.x[2] = torch.inf
                yield step

        with pytest.raises(InputError, match="the image of seed 12 is not finite from step 2 of 3; use other sampling"):
            pipe([0, 1, 2], seeds=[10, 11, 12], sampler=sampler, steps=3)


class TestSeeds:
    def noise(self, *seeds):
        return image_noise(seeds)(torch.empty(len(seeds), 1, 8, 8))

    def test_seeds_of_32_bits_keep_their_noise(self):
        for seed in (0, 7, 2**32 - 1):
            expected = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(self.noise(seed)[0], expected)

    def test_higher_bits_count(self):
        seeds = [7, 2**32 + 7, 2**33 + 7, 2**62 + 7, 2**32, 2**63 - 1]
        assert len(torch.unique(self.noise(*seeds).flatten(1), dim=0)) == len(seeds)
        # The values must never change; they are those of NumPy's RandomState([7, 1]).
        first = self.noise(2**32 + 7).flatten()[:3]
        assert first.tolist() == pytest.approx(np.random.RandomState([7, 1]).standard_normal(3), rel=1e-6)
        assert first.tolist() == pytest.approx([-0.63587147, -1.23438658, 1.77951776], abs=1e-6)

    def test_the_noise_is_normal(self):
        values = image_noise([2**40 + 1])(torch.empty(1, 1, 256, 256))
        assert abs(float(values.mean())) < 0.02
        assert float(values.std()) == pytest.approx(1, abs=0.02)

    def test_images(self):
        pipe = tiny_pipeline()
        seeds = [7, 4294967303, 8589934599]
        pixels = pipe([0] * 3, seeds=seeds, output_type="pt", **OPTIONS).images
        assert len(torch.unique(torch.as_tensor(pixels).flatten(1), dim=0)) == 3
        again = pipe(0, seeds=seeds[1], output_type="pt", **OPTIONS).images
        assert torch.equal(torch.as_tensor(again)[0], torch.as_tensor(pixels)[1])

    @pytest.mark.parametrize(
        ("seeds", "line"),
        [
            (1.0, "seed 1.0 is not a whole number; give 0 to 9223372036854775807"),
            ([0, "a"], "seed 'a' is not a whole number; give 0 to 9223372036854775807"),
            (ditlab.between(0, 1.5, 3), "seed 1.5 is not a whole number; give 0 to 9223372036854775807"),
            (-1, "seed -1 is out of range; give 0 to 9223372036854775807"),
            (2**63, "seed 9223372036854775808 is out of range; give 0 to 9223372036854775807"),
        ],
    )
    def test_other_values(self, seeds, line):
        with pytest.raises(InputError) as caught:
            tiny_pipeline()(0, seeds=seeds, **OPTIONS)
        assert str(caught.value) == line

    @pytest.mark.parametrize("kind", [np.array, torch.tensor])
    def test_arrays_without_an_axis_are_one_value(self, kind):
        pipe = tiny_pipeline()
        expected = pipe(1, seeds=3, output_type="latent", **OPTIONS).images
        assert torch.equal(pipe(kind(1), seeds=kind(3), output_type="latent", **OPTIONS).images, expected)

    def test_image_sets(self):
        with pytest.raises(InputError, match=r"^seed 4294967296 of an image set; give 0 to 4294967295$"):
            Samples(tiny_pipeline(), 6, labels="balanced", seed=2**32, batch_size=4, options=OPTIONS)
        high, low = (
            Samples(tiny_pipeline(), 6, labels="balanced", seed=seed, batch_size=4, options=OPTIONS)
            for seed in (2**31, 0)  # 6 * 2^31 is 2^32 times 3
        )
        assert not torch.equal(high.fetch(torch.arange(2)).x, low.fetch(torch.arange(2)).x)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 2.5}, "steps 2.5; give a whole number"),
        ({"schedule": [1.0]}, "the times of a schedule must fall from at most 1 to 0; give one time more than steps"),
        (
            {"schedule": [0, 0.5, 1]},
            "the times of a schedule must fall from at most 1 to 0; give one time more than steps",
        ),
        ({"schedule": ["a"]}, "schedule ['a']; give its name, or falling times"),
        ({"sampler": "ddim", "eta": float("nan")}, "eta is nan; give a number from 0 to 1"),
        ({"sampler": "ddim", "eta": 5}, "eta is 5.0; give a number from 0 to 1"),
        ({"guidance": 2, "guidance_interval": (0, 5)}, "guidance_interval is 5.0; give a number from 0 to 1"),
        ({"guidance": float("inf")}, "guidance inf; give a finite number (1 disables guidance)"),
        (
            {"guidance": 2, "guidance_channels": 99},
            "guidance_channels is 99; give 1 to 1, the channels that this model generates",
        ),
        ({"guidance": 2, "guidance_channels": 1.5}, "guidance_channels 1.5; give a whole number"),
        ({"batch_size": 2.5}, "batch size 2.5; give a whole number"),
        ({"num_images_per_prompt": 2.5}, "num_images_per_prompt 2.5; give a whole number"),
    ],
)
def test_numbers_that_cannot_be_used(options, line):
    with pytest.raises(InputError) as caught:
        tiny_pipeline()(0, **options)
    assert str(caught.value) == line


def test_a_registered_schedule_that_rises(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "rising", lambda process, steps: process.uniform(steps).flip(0))
    with pytest.raises(InputError, match='the schedule "rising" must return 3 times that fall from at most 1 to 0'):
        time_grid("rising", tiny_pipeline().objective.process, 2)


class TestHashes:
    def flip(self, file):
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)

    def test_a_changed_byte_is_refused(self, tmp_path):
        folder = tiny_pipeline().save(tmp_path / "model")
        assert list(json.loads((folder / MANIFEST).read_text())) == ["model.safetensors"]
        assert ditlab.load(folder).net.channels == 1
        self.flip(folder / "model.safetensors")
        with pytest.raises(InputError) as caught:
            ditlab.load(folder)
        assert str(caught.value) == (
            f"{folder} is damaged: the content of model.safetensors has changed since it was written; restore it from "
            "a copy, remove it if it is a checkpoint, or remove its manifest.json if you changed the weights yourself"
        )

    def test_weights_that_a_user_changed(self, tmp_path):
        folder = tiny_pipeline().save(tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        save_file({key: value + 1 for key, value in tensors.items()}, folder / "model.safetensors")
        (folder / MANIFEST).unlink()
        bias = "final_layer.linear.bias"
        assert torch.equal(ditlab.load(folder).net.state_dict()[bias], tensors[bias] + 1)

    def test_the_model_card_and_the_config_may_be_edited(self, tmp_path):
        folder = tiny_pipeline().save(tmp_path / "model")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"classes": ["a", "b", "c"]}))
        (folder / "README.md").write_text("mine")
        assert ditlab.load(folder).classes == ["a", "b", "c"]

    def test_the_autoencoder_of_a_model(self, tmp_path):
        pipe = tiny_pipeline()
        pipe.autoencoder = create_autoencoder(
            kind="patch", picture_channels=3, latent_channels=1, stride=2, width=8, depth=1
        )
        folder = pipe.save(tmp_path / "model")
        assert list(json.loads((folder / MANIFEST).read_text())) == ["autoencoder.safetensors", "model.safetensors"]
        self.flip(folder / "autoencoder.safetensors")
        with pytest.raises(InputError, match=r"content of autoencoder\.safetensors has changed since it was written"):
            ditlab.load(folder)
        with pytest.raises(InputError, match=r"content of autoencoder\.safetensors has changed since it was written"):
            ditlab.checkpoints.load_autoencoder(folder)

    def test_converted_models(self, tmp_path):
        folder = ditlab.checkpoints.convert(tiny_pipeline(), tmp_path / "model", "ditlab")
        self.flip(folder / "model.safetensors")
        with pytest.raises(InputError, match=r"the content of model\.safetensors has changed since it was written"):
            ditlab.load(folder)

    def test_an_autoencoder_alone(self, tmp_path):
        autoencoder = create_autoencoder(
            kind="patch", picture_channels=3, latent_channels=1, stride=2, width=8, depth=1
        )
        for _ in range(2):  # the second one replaces the first
            ditlab.checkpoints.save_autoencoder(autoencoder, tmp_path)
            assert ditlab.checkpoints.load_autoencoder(tmp_path).stride == 2
        self.flip(tmp_path / "autoencoder.safetensors")
        with pytest.raises(InputError, match=r"content of autoencoder\.safetensors has changed since it was written"):
            ditlab.checkpoints.load_autoencoder(tmp_path)

    @pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0])
    def test_the_scale_of_an_autoencoder(self, tmp_path, scale):
        with pytest.raises(InputError, match=rf"^scale {scale} of the latents; give a finite number, and a scale that"):
            ditlab.checkpoints.load_autoencoder(tmp_path, scale=scale)
