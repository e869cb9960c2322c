"""Names and arguments that users of other libraries expect: from_pretrained, save_pretrained, revision and others."""

import ast
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from helpers import tiny_pipeline

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.hub import is_hub_id

SOURCE = Path(ditlab.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_pipeline().save_pretrained(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def downloads(folder, monkeypatch):
    calls = []

    def download(name, allow_patterns, **options):
        calls.append((name, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


@pytest.fixture
def uploads(monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, name, private, exist_ok):
            return f"hub/{name}"

        def create_branch(self, name, branch, exist_ok):
            calls.append(("branch", branch))

        def upload_folder(self, repo_id, folder_path, delete_patterns, revision=None):
            calls.append(("card", huggingface_hub.ModelCard.load(folder_path / "README.md")))
            calls.append(("revision", revision))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return calls


def test_revision_token_and_cache_reach_the_hub(downloads):
    pipe = ditlab.Pipeline.from_pretrained("me/otters", revision="v2", token="t", cache_dir="~/hub", device="cpu")
    assert downloads == [("me/otters", {"revision": "v2", "token": "t", "cache_dir": str(Path.home() / "hub")})]
    assert pipe.loaded_from == {"source": "me/otters@v2"}
    ditlab.load("me/otters@v2")
    assert downloads[1] == ("me/otters", {"revision": "v2"})


def test_only_the_hub_has_revisions(folder):
    with pytest.raises(InputError, match="model has no revisions; give revision with a hub repository such as owner/"):
        ditlab.load(folder, revision="v2")
    with pytest.raises(InputError, match=r"^me/otters@v2 has no revisions"):
        ditlab.load("me/otters@v2", revision="v3")
    assert [is_hub_id(text) for text in ("me/otters@refs/pr/1", "me/otters@", "otters@v2")] == [True, False, False]


def test_precision(folder):
    expected = ditlab.load(folder)(0, seeds=0, steps=2, output_type="latent").images
    assert ditlab.load(folder).dtype is torch.float32
    for dtype in ("bfloat16", torch.bfloat16):
        pipe = ditlab.load(folder, dtype=dtype)
        assert pipe.dtype is torch.bfloat16
        latents = pipe(0, seeds=0, steps=2, output_type="latent").images
        assert latents.dtype is torch.float32
        assert 0 < (latents - expected).norm() / expected.norm() < 0.05
    assert ditlab.Pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).dtype is torch.bfloat16
    with pytest.raises(InputError, match=r'^unknown precision "int8"; choose from: float32, bfloat16$'):
        ditlab.load(folder, dtype=torch.int8)
    assert pipe.to(torch.float32).dtype is pipe.to("cpu").dtype is torch.float32
    assert pipe.to("cpu", "bfloat16") is pipe
    assert pipe.dtype is torch.bfloat16
    with pytest.raises(InputError, match=r'^unknown precision "float16"; choose from: float32, bfloat16$'):
        pipe.to(dtype=torch.float16)
    with pytest.raises(InputError, match=r"^torch_dtype and dtype are the same setting; give dtype$"):
        ditlab.Pipeline.from_pretrained(folder, dtype="float32", torch_dtype="float32")


def test_the_device_is_the_accelerator_unless_another_is_given(folder, monkeypatch):
    picked = []
    monkeypatch.setattr(
        sys.modules["ditlab.checkpoints.load"], "pick_device", lambda name: picked.append(name) or torch.device("cpu")
    )
    ditlab.load(folder)
    ditlab.load(folder, device="cuda")
    assert ditlab.load(folder, device=torch.device("cpu")).device == torch.device("cpu")
    assert picked == ["auto", "cuda", torch.device("cpu")]


@pytest.mark.slow
def test_code_that_only_reads_weights_loads_them_to_the_cpu():
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "load" and path.name != "weights.py":
                assert "device" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


def test_upload_to_a_branch_with_a_token_and_metadata(uploads):
    pipe = tiny_pipeline()
    pipe.config["recipe"] = {"train": {"init_from": "facebook/DiT-XL-2-256@main"}, "data": {"source": "hf:me/pets:val"}}
    assert pipe.push_to_hub("me/otters", license="mit", revision="v2", token="t") == "hub/me/otters"
    made = dict(uploads)
    card = made.pop("card")
    assert made == {"token": "t", "branch": "v2", "revision": "v2"}
    assert card.data.to_dict() == {
        "base_model": "facebook/DiT-XL-2-256",
        "datasets": ["me/pets"],
        "library_name": "ditlab",
        "license": "mit",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["ditlab", "diffusion", "diffusion-transformer"],
    }
    assert "ditlab.load('me/otters')" in card.text


def test_a_card_of_a_model_from_local_data_names_no_data_set(uploads):
    pipe = tiny_pipeline()
    pipe.config["recipe"] = {"train": {"init_from": "/models/otters"}, "data": {"source": "photos/pets"}}
    pipe.push_to_hub("me/otters")
    made = dict(uploads)
    assert (made["token"], made["revision"]) == (None, None)
    assert made["card"].data.base_model is None
    assert made["card"].data.datasets is None


def test_the_code_on_a_card_loads_the_repository(uploads):
    tiny_pipeline().push_to_hub("me/otters")
    text = dict(uploads)["card"].text
    assert "# otters" in text.splitlines()
    assert "ditlab.load('me/otters')" in text
    assert "DiffusionPipeline.from_pretrained('me/otters', custom_pipeline=" in text


@pytest.mark.parametrize(("name", "near"), [("devise", "device"), ("torch_dtype", "dtype"), ("weight", "weights")])
def test_a_misspelled_argument_of_load(folder, name, near):
    with pytest.raises(InputError, match=f'^load has no argument "{name}"; did you mean "{near}"\\?$'):
        ditlab.load(folder, **{name: "cpu"})


def test_saving_under_the_other_name(folder, tmp_path):
    pipe = ditlab.load(folder)
    assert pipe.save_pretrained(tmp_path / "model") == tmp_path / "model"
    with pytest.raises(InputError, match="holds a model"):
        pipe.save_pretrained(tmp_path / "model")
    assert ditlab.load(pipe.save_pretrained(tmp_path / "model", overwrite=True)).identity() == pipe.identity()


def test_an_upload_that_fails_is_one_clear_line(monkeypatch):
    class Api:
        def create_repo(self, *words, **options):
            raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(
        InputError, match=r"^me/otters cannot be uploaded to the hub \(no route to the hub\); check [^\n]*$"
    ):
        tiny_pipeline().push_to_hub("me/otters")
