"""Hourglass with text: words are attended to, and a vector of the text joins the condition."""

import pytest
import torch

from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.core.types import Condition

SMALL = {
    "size": 16, "channels": 3, "learn_variance": False, "width": 32, "depth": 2, "heads": 2, "outer": (16,),
    "condition_grid": True,
}  # fmt: skip


def made(**options):
    torch.manual_seed(0)
    net = create("Hourglass", classes=0, **SMALL, **options).eval()
    for parameter in net.parameters():  # the output of a new network is zero
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.fixture(scope="module")
def net():
    return made(text_length=5, vocabulary=9, outer_grids=True)


def words(*rows):
    tokens = torch.tensor(rows)
    return Condition(tokens=tokens, mask=tokens > 0)


@torch.no_grad()
def test_order_matters_and_padding_does_not(net):
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    outputs = [net(x, t, words(row)) for row in ([1, 2, 3, 0, 0], [1, 3, 2, 0, 0])]
    assert not torch.allclose(*outputs, atol=1e-3)
    padded = Condition(tokens=torch.tensor([[1, 2, 3, 7, 7]]), mask=torch.tensor([[True, True, True, False, False]]))
    assert torch.allclose(net(x, t, padded), outputs[0], atol=1e-5)
    assert torch.allclose(net(x, t, words([1, 2, 3])), outputs[0], atol=1e-5)


@torch.no_grad()
def test_rows_of_a_batch_are_independent(net):
    x, t, condition = net.example(3, torch.Generator().manual_seed(0))
    single = [net(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(3)]
    assert torch.allclose(net(x, t, condition), torch.cat(single), atol=1e-5)


@torch.no_grad()
def test_states_with_a_pooled_vector():
    net = made(text_length=4, text_width=6, pooled_width=3)
    condition = Condition(tokens=torch.randn(2, 3, 6), pooled=torch.randn(2, 3))
    x, t = torch.randn(2, 3, 16, 16), torch.zeros(2)
    other = Condition(tokens=condition.tokens, pooled=condition.pooled + 1)
    assert not torch.allclose(net(x, t, condition), net(x, t, other), atol=1e-3)


def test_a_new_network_is_zero_and_learns_its_words():
    torch.manual_seed(0)
    net = create("Hourglass", classes=0, **SMALL, text_length=5, vocabulary=9, outer_grids=True)
    x, t, condition = net.example(2, torch.Generator().manual_seed(0))
    assert not net(x, t, condition).any()
    assert net.text_embedder.embed.weight.detach().std() == pytest.approx(0.5, abs=0.05)
    torch.nn.init.normal_(net.head.weight)
    net(x, t, condition).square().mean().backward()
    blocks = [block for block in net.repeated if hasattr(block, "words")]
    assert len(blocks) == 1
    assert blocks[0].words.kv.weight.grad.any()


@torch.no_grad()
def test_the_images_of_words_are_added_to_the_input():
    net = made(text_length=5, vocabulary=9, word_images=3)
    table = net.word_images.table.weight.view(9, 3, 8, 8)
    condition = words([1, 4, 4, 2, 0], [1, 2, 0, 0, 0])
    expected = torch.stack([table[1] + 2 * table[4] + table[2], table[1] + table[2]])
    assert torch.allclose(net.word_images(condition), expected, atol=1e-6)
    unmasked = Condition(tokens=condition.tokens[:, :2])
    assert torch.equal(net.word_images(unmasked), torch.stack([table[1] + table[4], table[1] + table[2]]))
    x, t = torch.randn(2, 3, 16, 16), torch.zeros(2)
    before = net(x, t, condition)
    net.word_images.table.weight[4] += 1
    after = net(x, t, condition)
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[0], before[0], atol=1e-2)


@torch.no_grad()
def test_with_word_order_the_place_of_a_word_matters_before_any_attention():
    torch.manual_seed(0)
    net = create("Hourglass", classes=0, **SMALL, text_length=5, vocabulary=9, word_images=3, word_order=True)
    table, codes = net.word_images.table.weight.view(9, 3, 8, 8), net.word_images.codes
    assert codes.std() > 0.5  # random from the start
    condition = words([1, 4, 2, 0, 0], [1, 2, 4, 0, 0])
    images = net.word_images(condition)
    expected = sum(table[word] * codes[place, :, None, None] for place, word in enumerate((1, 4, 2)))
    assert torch.allclose(images[0], expected, atol=1e-6)
    assert not torch.allclose(images[0], images[1], atol=1e-2)
    embedder = net.text_embedder
    for part in (embedder.attn.proj, embedder.mlp.fc2):  # without them, the mean of the tokens has no order
        part.weight.zero_()
    vectors = embedder(condition)[2]
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-2)
    embedder.codes.fill_(1)
    vectors = embedder(condition)[2]
    assert torch.allclose(vectors[0], vectors[1], atol=1e-5)


def test_optimizer_groups_have_all_parameters(net):
    groups = net.parameter_groups()
    assert sum(len(group.parameters) for group in groups) == len([*net.parameters()])
    muon = {id(p) for group in groups if group.muon for p in group.parameters}
    assert id(net.repeated[2].words.q.weight) in muon
    assert id(net.text_embedder.embed.weight) not in muon


@pytest.mark.parametrize(("condition", "message"), [
    (torch.zeros(1, dtype=torch.long), "a condition with labels for a network that reads text; give tokens"),
    (Condition(label=torch.zeros(1, dtype=torch.long)),
     "a condition with label for a network that reads text; give tokens"),
])  # fmt: skip
def test_labels_for_a_text_network(net, condition, message):
    with pytest.raises(InputError) as error:
        net(torch.zeros(1, 3, 16, 16), torch.zeros(1), condition)
    assert str(error.value) == message


@pytest.mark.parametrize(("options", "message"), [
    ({"classes": 3, "text_length": 5, "vocabulary": 9}, "3 classes for a network that reads text; give classes = 0"),
    ({"classes": 0, "text_length": 5}, "text_width 0 and vocabulary 0; give one of them: the width of the encoder's "
     "states, or the number of words"),
    ({"classes": 0, "outer": (), "outer_grids": True},
     "outer_grids is set, but there are no outer levels; give outer, or remove outer_grids"),
    ({"classes": 0, "text_length": -1}, "text condition with length -1; give 0 or more"),
    ({"classes": 0, "text_length": 5, "vocabulary": 9, "word_images": -1}, "word_images -1; give 0 or more channels"),
    ({"classes": 0, "text_length": 5, "text_width": 6, "word_images": 3}, "word_images 3 for a network that does not "
     "read numbers of words; give 0, or set the encoder words"),
    ({"classes": 0, "text_length": 5, "text_width": 6, "word_order": True},
     "word_order needs tokens that are numbers of words; remove it, or set the encoder words"),
])  # fmt: skip
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(InputError) as error:
        create("Hourglass", **SMALL | options)
    assert str(error.value) == message


def test_class_conditional_networks_have_no_words():
    net = create("Hourglass", classes=3, **SMALL)
    assert "y_embedder.embedding_table.weight" in net.state_dict()
    assert not any("words" in name or "text" in name for name in net.state_dict())
