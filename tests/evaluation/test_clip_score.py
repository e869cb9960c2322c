"""The CLIP score, with a tiny random CLIP."""

import pytest
import torch

from ditlab.core.errors import InputError
from ditlab.evaluation.clip_score import MEAN, SPREAD, ClipScore

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
WORDS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "a", "red", "blue", "apple"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(WORDS), "max_position_embeddings": 6, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 8, "patch_size": 4}, projection_dim=8
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    ).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_the_score_is_the_cosine_of_the_embeddings(place):
    score = ClipScore(str(place))
    images = torch.randint(256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    prompts = ["a red apple", "a blue apple", "apple"]
    net = transformers.CLIPModel.from_pretrained(place)
    mean, spread = (torch.tensor(values)[:, None, None] for values in (MEAN, SPREAD))
    for image, prompt, value in zip(images, prompts, score(images, prompts), strict=True):
        ids = torch.tensor([[2, *(WORDS.index(word) for word in prompt.split()), 3]])
        output = net(input_ids=ids, pixel_values=((image / 255 - mean) / spread)[None])
        cosine = (output.image_embeds * output.text_embeds).sum().item()
        assert value.item() == pytest.approx(100 * max(cosine, 0), abs=1e-3)


def test_images_of_other_sizes_are_cropped(place):
    score = ClipScore(str(place))
    image = torch.full((1, 3, 8, 16), 255, dtype=torch.uint8)
    image[:, :, :, :2], image[:, :, :, -2:] = 0, 0
    square = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert torch.allclose(score(image, ["apple"]), score(square, ["apple"]), atol=1e-3)


def test_bad_input(place, tmp_path):
    score = ClipScore(str(place))
    for images, prompts, message in (
        (torch.zeros(2, 3, 8, 8).byte(), ["a"], "2 images and 1 prompt; give one prompt for each image"),
        (torch.zeros(1, 1, 8, 8).byte(), ["a"], "images of shape (1, 1, 8, 8); give RGB images (N, 3, H, W)"),
    ):
        with pytest.raises(InputError) as error:
            score(images, prompts)
        assert str(error.value) == message
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        ClipScore(str(tmp_path))
    assert str(error.value) == f"{tmp_path} is a model of type bert; give a CLIP"
