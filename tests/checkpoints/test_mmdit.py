"""Stable Diffusion 3 in the layouts of Stability and of diffusers, as files and folders."""

import json

import pytest
import torch
from helpers import relative
from safetensors.torch import load_file, save_file

import ditlab
from ditlab import cli
from ditlab.autoencoders import KL
from ditlab.backbones.mmdit_layouts import PREFIX
from ditlab.checkpoints import convert
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import Linear
from ditlab.inference.pipeline import Pipeline

CONFIG = {  # of diffusers, for the vectors sd3_dual
    "_class_name": "SD3Transformer2DModel",
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "sample_size": 16,
    "qk_norm": "rms_norm",
}
KL_CONFIG = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": [8, 8], "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


@pytest.fixture
def released(golden, tmp_path):
    """A file in the layout of a release: a prefix, half precision, and the parts of a pipeline."""
    vectors = golden("sd3_release_fp16")
    state = {key[6:]: value.contiguous() for key, value in vectors.items() if key.startswith("state.")}
    file = tmp_path / "sd3.safetensors"
    save_file(state | {"text_encoders.clip_l.weight": torch.zeros(2)}, file)
    return file, vectors, state


@pytest.fixture
def diffusers_state(golden):
    vectors = golden("sd3_dual")
    return vectors, {key[6:]: value.contiguous() for key, value in vectors.items() if key.startswith("state.")}


def same_output(pipe, vectors):
    x, t = vectors["x"], vectors["t"]
    with torch.no_grad():
        out = pipe.net(x, t, Condition(tokens=vectors["context"], pooled=vectors["pooled"]))
    return relative(out, vectors["out"]) < 1e-5


def equal(first, second):
    return first.keys() == second.keys() and all(
        first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]) for key in second
    )


def test_a_released_file(released, tmp_path):
    file, vectors, state = released
    pipe = ditlab.load(file)
    assert same_output(pipe, vectors)
    assert (pipe.objective.process, pipe.objective.target, pipe.objective.time) == (
        Linear(),
        "velocity",
        "logit-normal",
    )
    assert pipe.config["note"] == "left out text_encoders.* (1 tensor), which are not the network"
    assert pipe.net.dtype == torch.float32
    convert(pipe, tmp_path / "again.safetensors", "official")
    assert equal(load_file(tmp_path / "again.safetensors"), state)
    pipe.save(tmp_path / "own")
    convert(ditlab.load(tmp_path / "own"), tmp_path / "third.safetensors", "official")
    assert equal(load_file(tmp_path / "third.safetensors"), state)
    convert(pipe, tmp_path / "folder", "diffusers")
    weights = load_file(tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert same_output(ditlab.load(tmp_path / "folder"), vectors)


def test_the_autoencoder_of_a_released_file(released, tmp_path):
    sizes = {"block_out_channels": [32, 32], "norm_num_groups": 32}  # a file does not state the groups
    autoencoder = KL(KL_CONFIG | sizes, scale=1.5305, shift=0.0609).eval()
    parts = {f"first_stage_model.{key.removeprefix('net.')}": v for key, v in autoencoder.state_dict().items()}
    save_file(released[2] | parts, tmp_path / "whole.safetensors")
    pipe = ditlab.load(tmp_path / "whole.safetensors")
    assert "note" not in pipe.config
    assert (pipe.autoencoder.config["scale"], pipe.autoencoder.config["shift"]) == (1.5305, 0.0609)
    x0 = torch.randn(1, 16, 8, 8)
    assert torch.equal(pipe.autoencoder.decode(x0), autoencoder.decode(x0))
    with pytest.raises(InputError, match="this model has no text encoder; load the pipeline folder that has one"):
        pipe(["a red apple"], seeds=0)


def test_changed_weights_are_written_in_float32(released, tmp_path):
    pipe = ditlab.load(released[0])
    with torch.no_grad():
        pipe.net.final_layer.linear.bias.add_(1e-6)
    convert(pipe, tmp_path / "again.safetensors", "official")
    assert {value.dtype for value in load_file(tmp_path / "again.safetensors").values()} == {torch.float32}


def test_a_file_without_prefix_and_of_other_heads(golden, tmp_path):
    vectors = golden("sd3_qknorm_original")
    state = {key[6:]: value.contiguous() for key, value in vectors.items() if key.startswith("state.")}
    save_file(state, tmp_path / "own.safetensors")
    pipe = ditlab.load(tmp_path / "own.safetensors")  # the gains of the queries show the number of heads
    assert same_output(pipe, vectors)
    assert "note" not in pipe.config
    convert(pipe, tmp_path / "again.safetensors", "official")
    assert equal(load_file(tmp_path / "again.safetensors"), {f"{PREFIX}{key}": value for key, value in state.items()})
    plain = {key: value for key, value in state.items() if ".ln_" not in key}
    save_file(plain, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"depth 3 and width 48 are no published size; give heads=, the number of"):
        ditlab.load(tmp_path / "plain.safetensors")
    assert ditlab.load(tmp_path / "plain.safetensors", heads=3, size=(8, 12)).shape == (4, 8, 12)


def test_diffusers_as_a_file_and_as_a_folder(diffusers_state, tmp_path):
    vectors, state = diffusers_state
    save_file(state, tmp_path / "alone.safetensors")
    (tmp_path / "pipe" / "transformer").mkdir(parents=True)
    save_file(state, tmp_path / "pipe" / "transformer" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "pipe" / "transformer" / "config.json").write_text(json.dumps(CONFIG))
    for place, size in (("alone.safetensors", 24), ("pipe", 16), ("pipe/transformer", 16)):
        pipe = ditlab.load(tmp_path / place)
        assert same_output(pipe, vectors)
        assert pipe.net.size == (size, size)
        assert pipe.net.config["dual_blocks"] == 2
    convert(pipe, tmp_path / "back", "diffusers")
    assert equal(load_file(tmp_path / "back" / "transformer" / "diffusion_pytorch_model.safetensors"), state)
    config = json.loads((tmp_path / "back" / "transformer" / "config.json").read_text())
    assert config.items() >= CONFIG.items()
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "back" / "transformer")
    with torch.no_grad():
        arguments = {"encoder_hidden_states": vectors["context"], "pooled_projections": vectors["pooled"]}
        assert relative(theirs(vectors["x"], timestep=vectors["t"], **arguments).sample, vectors["out"]) < 1e-5


def test_settings_that_were_not_released(diffusers_state, tmp_path):
    _, state = diffusers_state
    (tmp_path / "transformer").mkdir()
    save_file(state, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(CONFIG | {"qk_norm": "layer_norm"}))
    with pytest.raises(InputError, match=r"qk_norm layer_norm of an SD3Transformer2DModel; only rms_norm and none"):
        ditlab.load(tmp_path)
    late = {key.replace("transformer_blocks.0.attn2", "transformer_blocks.2.attn2"): v for key, v in state.items()}
    save_file(late, tmp_path / "late.safetensors")
    with pytest.raises(InputError, match="only the first blocks of an MMDiT may have a second attention"):
        ditlab.load(tmp_path / "late.safetensors")


def test_options_of_ditlab_have_no_published_layout(tmp_path):
    net = ditlab.create("MMDiT-XS/4", size=8, channels=3, vocabulary=9, text_length=4, depth=2, condition_grid=False)
    pipe = Pipeline(net, Objective())
    for layout in ("official", "diffusers"):
        with pytest.raises(InputError, match=r"of MMDiT-XS/4 has text_block = False only, and this model True"):
            convert(pipe, tmp_path / "out", layout)


def test_the_autoencoder_has_a_shift(diffusers_state, tmp_path):
    torch.manual_seed(0)
    autoencoder = KL(KL_CONFIG, scale=1.5305, shift=0.0609).eval()
    ditlab.checkpoints.save_autoencoder(autoencoder, tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"], config["latent_channels"]) == (1.5305, 0.0609, 16)
    again = ditlab.checkpoints.load_autoencoder(tmp_path / "vae")
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    moments = autoencoder.encode(images)
    x0 = again.latents(moments, torch.zeros_like)
    assert torch.allclose(x0, (moments[:, :16] - 0.0609) * 1.5305, atol=1e-5)
    assert torch.equal(again.decode(x0), autoencoder.decode(x0))


def test_through_the_command_line(released, tmp_path, monkeypatch, capsys):
    arguments = ["convert", str(released[0]), str(tmp_path / "model"), "--to", "ditlab"]
    monkeypatch.setattr("sys.argv", ["ditlab", *arguments])
    cli.main()
    monkeypatch.setattr("sys.argv", ["ditlab", "info", str(tmp_path / "model"), "--json"])
    cli.main()
    cost = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert cost["parameters"] == sum(value.numel() for value in released[2].values()) - 64 * 128
