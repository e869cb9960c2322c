"""What every family can do, without a line of its own anywhere but in `BACKBONES`."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import inputs, perturbed, relative
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.backbones import BACKBONES, create, find, name_of, names
from ditlab.backbones.inputs import FurtherInputs
from ditlab.backbones.lora import add_lora, merged
from ditlab.checkpoints.native import load_folder
from ditlab.conditioning import Text
from ditlab.conditioning.encoders import Words
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.data import open_dataset
from ditlab.data.base import InMemory
from ditlab.diffusion.objective import Objective
from ditlab.inference.pipeline import Pipeline
from ditlab.training import train
from ditlab.training.parallel import keep_inputs_only

SHAPE = {"channels": 3, "classes": 3, "learn_variance": False}
UNET = {"width": 16, "multiples": [1, 2], "depth": 1, "attention_at": [2]}
TINY = {  # settings of each family that make it small
    "DiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "U-DiT": {"width": 16, "heads": 2, "depths": [1, 1, 1]},
    "U-ViT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "Skip-DiT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "LightningDiT": {"width": 48, "depth": 2, "heads": 3, "patch": 2},
    "DiMSUM": {"width": 32, "depth": 2, "heads": 4, "patch": 2, "attention_every": 2},
    "FiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "FiTv2": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "DiC": {"width": 16, "depths": [1, 1, 1]},
    "PDE-Transformer": {"width": 16, "heads": 2, "depths": [1, 2, 1], "patch": 1, "window": 2},
    "Hourglass": {"width": 32, "depth": 2, "heads": 2, "outer": [16], "condition_grid": True},
    "PixArt": {"width": 48, "depth": 3, "heads": 2, "patch": 2, "condition_grid": True, "resolution": 1},
    "MMDiT": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "patch": 2,
        "qk_norm": True,
        "dual_blocks": 1,
        "condition_grid": True,
    }
    | {"text_length": 5, "vocabulary": 11, "text_block": True, "classes": 0},
    "Flux": {"width": 32, "depth": 1, "single_depth": 2, "heads": 2, "patch": 2, "condition_grid": True}
    | {"text_length": 5, "vocabulary": 11, "text_block": True, "classes": 0},
    "DyDiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2, "budget": 0.6},
    "DeepFusion": {
        "width": 32,
        "depth": 4,
        "heads": 4,
        "kv_heads": 2,
        "head_width": 8,
        "patch": 2,
        "condition_grid": True,
    },
    "Latte": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "STDiT3": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "VideoDiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "ClipHourglass": {"width": 32, "depth": 1, "heads": 2, "outer": [16], "patch": 2, "patch_frames": 1},
    "ADM": UNET | {"head_width": 16},
    "LDM": UNET | {"head_width": 0},
}
SPECIAL = (
    "attn.logit_scale",
    "A_log",
    "scale_shift_table",
)  # parameters that are not the matrix of a layer, of the families that decay none


@pytest.fixture(params=BACKBONES)
def family(request):
    return request.param


def sized(family, height=8, width=8):
    """The size of images of a family, or of clips of two frames."""
    return (2, height, width) if find(family)[0].spatial == 3 else (height, width)


@pytest.fixture
def make(family):
    torch.manual_seed(0)
    return lambda **options: create(family, **SHAPE | {"size": sized(family)} | TINY[family] | options)


def test_time_label_and_every_weight_matter(make):
    net = perturbed(make())
    x, t, y = inputs(net, 4)
    out = net(x, t, y)
    assert (net(x, t + 50, y) - out).abs().amax() > 1e-3
    assert (net(x, t, y[torch.tensor([3, 2, 1, 0])]) - out).abs().amax() > 1e-3
    (out * torch.randn_like(out)).sum().backward()
    unmoved = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert unmoved == []


def test_rows_of_labels_and_channels_of_the_head_are_named(make):
    net = make(learn_variance=True)
    state = net.state_dict()
    assert {len(state[name]) for name in net.label_tables} == ({4} if net.classes else set())
    assert all(len(state[name]) % net.out_channels == 0 for name in net.heads_out)


def test_without_classes_and_on_a_rectangle(family, make):
    net = perturbed(make(classes=0, size=sized(family, 8, 16)))
    x, t, y = inputs(net)
    assert net(x, t, y).shape == (2, 3, *sized(family, 8, 16))
    tokens = make().tokens
    expected = {
        "U-ViT": 2 * tokens - 3,
        "MMDiT": 2 * tokens - 5,
        "Flux": 2 * tokens - 5,
        "PDE-Transformer": tokens,
    }  # windows have a fixed size
    assert net.tokens == expected.get(net.config["name"], 2 * tokens)
    if not net.one_size:
        assert net(x[..., :8], t, y).shape == (2, 3, *sized(family))
        return
    with pytest.raises(InputError, match="input of 3x8x8 for a network made for 3x8x16"):
        net(x[..., :8], t, y)


def test_images_of_a_batch_do_not_see_each_other(make):
    net = perturbed(make()).eval()
    x, t, y = inputs(net, 3)
    with torch.no_grad():
        together = net(x, t, y)
        apart = torch.cat([net(*(part[i : i + 1] for part in (x, t, y))) for i in range(3)])
    assert relative(apart, together) < 1e-5


def test_config_creates_the_same_network_again(family, make):
    net = make(size=sized(family, 8, 16))
    assert json.loads(json.dumps(net.config)) == net.config
    again = create(**net.config | {"size": tuple(net.config["size"])})
    assert again.config == net.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


def test_published_names_are_found_by_their_sizes(family):
    kind = BACKBONES[family]
    own = [name for name in names() if find(name)[0] is kind]
    assert len(own) == len(kind.variants()) > 0
    for name in own:
        settings = json.loads(json.dumps(find(name)[1]))
        assert name_of(kind, settings) == name
        assert name_of(kind, settings | {"width": 17}) == family


def test_fused_computes_the_same_and_leaves_the_original_alone(make):
    net = perturbed(make(), 0.05).eval()
    given, before = inputs(net), {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        assert relative(net.fused()(*given), net(*given)) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_autocast_agrees_with_float32(make):
    net = perturbed(make(), 0.02)
    given = inputs(net)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = net(*given)
    assert relative(low.float(), net(*given)) < 0.05


def test_a_trace_records_every_block_and_changes_nothing(make):
    net = perturbed(make())
    given = inputs(net)
    blocks = net.repeated
    trace = Trace([f"blocks.{i}" for i in range(len(blocks))])
    outputs = []
    hooks = [block.register_forward_hook(lambda block, given, output: outputs.append(output)) for block in blocks]
    plain = net(*given)
    [hook.remove() for hook in hooks]
    assert torch.equal(net(*given, trace=trace), plain)
    assert len(outputs) == len(blocks) == len(trace.taps)
    assert all(torch.equal(trace.taps[f"blocks.{i}"], output) for i, output in enumerate(outputs))
    assert Trace(["blocks.0"]).taps == {}


@pytest.mark.slow
def test_a_trace_goes_through_checkpointed_blocks(make):
    net = perturbed(make())
    if not net.repeated:
        return
    keep_inputs_only(net)
    x, t, y = inputs(net)
    trace = Trace(["blocks.1"])
    (net(x, t, y, trace=trace).square().mean() + trace.taps["blocks.1"].square().mean()).backward()
    assert all(parameter.grad is not None for parameter in net.repeated[0].parameters())


def test_groups_of_parameters_are_those_of_saved_optimizer_states(make):
    """Weight decay on everything that is no vector, and Muon on the blocks' matrices, as runs of earlier versions.

    Some families have special parameters with neither.
    """
    net = make()
    modulations = {id(p) for modulation in net.modulations() for p in modulation.layer.parameters()}
    decay, others, muon = net.parameter_groups()
    assert [group[1:] for group in (decay, others, muon)] == [(True, False), (False, False), (True, True)]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert all(p.ndim >= 2 for p in (*decay.parameters, *muon.parameters))
    assert all(p.ndim < 2 or names[id(p)].endswith(SPECIAL) for p in others.parameters)
    blocks = {
        id(p)
        for block in net.repeated
        for name, p in block.named_parameters()
        if p.ndim in ((2, 4) if net.muon_kernels else (2,))
        and "adaLN" not in name
        and id(p) not in modulations
        and not name.endswith((*net.not_muon, *SPECIAL))
        and names[id(p)] not in net.heads_out
    }
    assert {id(p) for p in muon.parameters} == blocks
    assert sum(len(group.parameters) for group in (decay, others, muon)) == len(names)


def test_matrix_width_is_the_size_named_width(make):
    assert make().matrix_width == make().config["width"]


def test_grids_of_attention_have_the_shape_of_the_input(family, make):
    net = make(size=sized(family, 8, 16))
    assert net.shape == (3, *sized(family, 8, 16))
    if net.spatial == 3:
        assert net.grid[-2:] == (8 // net.patch, 16 // net.patch)
        return
    h, w = net.grid
    assert net.grid_of(net.extras + h * w + net.joined) == (h, w)
    assert net.grid_of(net.extras + h * w + net.joined + 1) is None


def test_examples_are_inputs_of_a_trial_call(family, make):
    net = perturbed(make(size=sized(family, 8, 16)))
    x, timestep, condition = net.example(2)
    assert (x.abs().sum(), timestep.tolist()) == (0, [0.5, 0.5])
    x, timestep, other = net.example(5, torch.Generator().manual_seed(1))
    assert len(set(timestep.tolist())) == 5
    if net.text:
        assert (len(condition), len(other)) == (2, 5)
        assert torch.equal(net(x, timestep, other), net(x, timestep, replace(other, mask=None)))
        return
    assert condition.label.tolist() == [3, 3]
    condition = other
    assert condition.label.tolist() == [3, 0, 1, 2, 3]
    assert torch.equal(net(x, timestep, condition), net(x, timestep, condition.label))


@pytest.mark.slow
def test_a_loaded_model_generates_the_same_images(make, tmp_path):
    net = perturbed(make(), 0.05).eval()
    words = Words([f"word{i}" for i in range(9)], length=5)
    pipe = Pipeline(net, Objective(), conditioner=Text(words.config) if net.text else None)
    values = ["word0 word5", "word8"] if net.text else [0, 2]
    pipe.save(tmp_path / "model")
    loaded = load_folder(tmp_path / "model")
    assert loaded.net.config == pipe.net.config
    a, b = (each(values, seeds=[0, 1], num_inference_steps=2, output_type="latent").images for each in (pipe, loaded))
    assert torch.equal(a, b)
    *_, last = pipe.steps(values, seeds=[0, 1], num_inference_steps=2)
    assert torch.equal(last.x, a)


def test_low_rank_updates_change_it_and_are_merged(make):
    pytest.importorskip("peft")
    net = perturbed(make(), 0.05)
    given = inputs(net)
    before = net(*given)
    add_lora(net, 2, [*net.label_tables, *net.heads_out], seed=0)
    assert torch.equal(net(*given), before)
    perturbed(net, 0.05)
    assert relative(net(*given), before) > 1e-3
    assert relative(merged(net)(*given), net(*given)) < 1e-4


def test_trains_like_any_other(family, tmp_path):
    text = "text_length" in TINY[family]
    options = {key: value for key, value in TINY[family].items() if key not in ("text_length", "vocabulary", "classes")}
    recipe = parse_recipe(
        {
            "model": {"name": family, **options},
            "data": captioned(tmp_path / "data") if text else {},
            "optim": {"lr": 2e-3, "warmup": 32},
            "train": {"images": 128, "batch": 16, "precision": "float32", "ema": 0.9, "device": "cpu"}
            | {"log_every": 16, "preview_every": 1024, "save_every": 128},
            "sample": {"sampler": "euler", "steps": 2},
        }
    )
    data = clips() if find(family)[0].spatial == 3 else None
    train(recipe, tmp_path / "run", data=data, console=Console(quiet=True))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert len(ditlab.load(tmp_path / "run")(["image 3", "image 7"] if text else ["3", "7"], seeds=[0, 1]).images) == 2


def clips():
    """The digits as clips of two frames."""
    digits = open_dataset("digits")
    return InMemory(digits.images[:, :, None].repeat(1, 1, 2, 1, 1), digits.labels, digits.classes)


def captioned(folder):
    """The data section of a recipe, with sixteen images and their captions."""
    folder.mkdir()
    for i in range(16):
        Image.new("L", (8, 8), 16 * i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"image {i}")
    return {"source": str(folder), "conditioner": "text"}


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_any_number_of_channels(family, make, channels):
    net = make(channels=channels)
    x, t, y = inputs(net)
    assert net(x, t, y).shape == x.shape == (2, channels, *sized(family))
    learned = make(channels=channels, learn_variance=True)
    assert learned(x, t, y).shape == (2, 2 * channels, *sized(family))


def test_further_inputs_change_nothing_before_training(make, family):
    """The second time of flow maps and the guidance scale, in every family but the U-Nets of diffusers."""
    if family in ("ADM", "LDM"):
        return
    if make().frame_times:
        with pytest.raises(InputError, match=f"{family} has a timestep for each frame, so that it cannot take further"):
            make(inputs=("interval",))
        return
    plain, net = perturbed(make()).eval(), make(inputs=("interval", "guidance")).eval()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(".further.mlp." in key for key in missing)
    x, t, y = inputs(net)
    with torch.no_grad():
        assert torch.equal(net(x, torch.stack([t, torch.rand(2), torch.rand(2)], dim=1), y), plain(x, t, y))
        for module in net.modules():
            if isinstance(module, FurtherInputs):
                perturbed(module)
        low, high = (net(x, torch.stack([t, torch.full((2,), end), t / 1000], dim=1), y) for end in (0.1, 0.9))
        assert relative(low, high) > 1e-4
        net(*net.example(2))
    assert create(**net.config | {"size": tuple(net.size)}).inputs == ("interval", "guidance")
