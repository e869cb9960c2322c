"""What a forward pass keeps on a device, counted without the device."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ditlab.backbones import create
from ditlab.training.kernels import KernelsOf
from ditlab.training.memory import Activations, kept_tensors

MODERN = {"rms_norm": True, "swiglu": True, "rope": True, "qk_norm": True}
WIDTH, DEPTH, TOKENS, HEADS = 64, 2, 256, 2


def network(**options):
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "patch": 2}
    return create("DiT", size=32, channels=4, classes=3, learn_variance=False, **sizes | options)


def by_pytorch(batch, half, **options):
    """The same count by PyTorch's own dispatch of operations on a CPU, with its autocast, on tensors without values."""
    with FakeTensorMode():
        net = network(**options).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            values, copies = kept_tensors(net, net.example(batch), None, KernelsOf("cpu", half=False))
    assert copies == 0  # those of autocast are among the values
    return sum(values)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("options", [{}, MODERN], ids=["DiT", "modern layers"])
def test_on_a_cpu_the_count_is_that_of_pytorch(half, options):
    expected, counted = (
        [count(batch) for batch in (2, 4)]
        for count in (
            lambda batch: by_pytorch(batch, half, **options),
            lambda batch: Activations(lambda: network(**options), batch, half=half).sizes()[0],
        )
    )
    assert counted[1] - counted[0] == expected[1] - expected[0]  # for each image, exactly
    # Autocast also copies parameters that the backward pass does not need.
    spare = [
        p for name, p in network(**options).named_parameters() if name.endswith((".bias", "t_embedder.mlp.0.weight"))
    ]
    assert counted[0] - expected[0] == (2 * sum(p.numel() for p in spare) if half else 0)


def test_fused_attention_keeps_no_weights_of_attention():
    per_image = Activations(network, 2).sizes()[0] - Activations(network, 1).sizes()[0]
    weights = DEPTH * HEADS * TOKENS**2 * 4
    # Both norms and their outputs, attention and MLP: 80 bytes for each channel of a token; 4 for each head's sum. Then
    # the final layer.
    blocks = DEPTH * TOKENS * (80 * WIDTH + 4 * HEADS)
    assert blocks < per_image < blocks + 16 * TOKENS * WIDTH < blocks + weights
    assert Activations(network, 1, kind="cuda").sizes() == Activations(network, 1).sizes()


def test_autocast_of_an_accelerator_keeps_norms_and_sums_in_float32():
    """A block keeps, in bytes for each channel of a token, by autocast's lists of operations:

    Attention: input 4, its norm 4, input of qkv 2, q k v 6, attention 2, output 4 (float32, as an argument of addcmul).
    MLP: input 4, its norm 4, input of fc1 2, hidden 8 and after GELU 8, output 4. For each token also the sum of each
    head, and mean and deviation of two norms.
    """
    two, four = (Activations(network, batch, kind="cuda", half=True).sizes()[0] for batch in (2, 4))
    block = TOKENS * (52 * WIDTH + 4 * HEADS + 16)
    deeper = [Activations(lambda: network(depth=4), batch, kind="cuda", half=True).sizes()[0] for batch in (2, 4)]
    added = (deeper[1] - deeper[0] - four + two) / 2 / 2
    assert block < added < block + 20 * WIDTH  # shifts, scales and gates of an image, not of a token


def test_the_copies_of_weights_are_counted_once():
    two, four = (Activations(network, batch, kind="cuda", half=True).sizes()[0] for batch in (2, 4))
    weights = sum(p.numel() for name, p in network().named_parameters() if "embedding_table" not in name)
    assert 2 * two - four == pytest.approx(2 * weights, rel=0.002)
    assert Activations(network, 2, kind="cuda", half=True).sizes(checkpointing=True)[0] > 2 * weights
