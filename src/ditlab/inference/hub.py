"""Upload a model to the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.core.errors import InputError
from ditlab.core.formats import reason
from ditlab.core.hub import hub_library, is_hub_id
from ditlab.inference import saving
from ditlab.inference.finite import check_weights

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline

TAGS = ["ditlab", "diffusion", "diffusion-transformer"]


def push(
    pipe: "Pipeline", repository: str, *, private: bool, license: str | None, revision: str | None, token: str | None
) -> str:
    """Upload a model folder, see `Pipeline.push_to_hub`; returns the URL of the repository.

    Raises:
        InputError: the hub cannot be reached, or refuses the upload.
    """
    hub = hub_library()
    check_weights(pipe)
    if license is not None:
        pipe.config["license"] = license
    with tempfile.TemporaryDirectory() as draft:
        folder = saving.write_whole(pipe, Path(draft), repository)
        add_metadata(folder / saving.CARD, pipe.config.get("recipe", {}), hub)
        try:
            return upload(hub.HfApi(token=token) if token else hub.HfApi(), repository, folder, private, revision)
        except Exception as error:  # the library raises many types of error: no network, no access, no such name
            raise InputError(
                f"{repository} cannot be uploaded to the hub ({reason(error)}); check the name, the network and the "
                "token (`hf auth login`), or save the model to a folder"
            ) from error


def upload(api: Any, repository: str, folder: Path, private: bool, revision: str | None) -> str:
    """Upload a folder with the API of the hub; returns the URL of the repository."""
    address = str(api.create_repo(repository, private=private, exist_ok=True))
    branch = {}
    if revision is not None:
        api.create_branch(repository, branch=revision, exist_ok=True)
        branch = {"revision": revision}
    # One commit, which also removes files that an earlier model had and this one does not have.
    api.upload_folder(repo_id=repository, folder_path=folder, delete_patterns=sorted(saving.FILES), **branch)
    return address


def add_metadata(card: Path, recipe: dict[str, Any], hub: Any) -> None:
    """Add what the hub searches for to a model card: tags, and the model and data set that it was trained from."""
    text = hub.ModelCard(card.read_text(encoding="utf-8"))
    text.data.tags = TAGS
    origin, source = recipe.get("train", {}).get("init_from", ""), recipe.get("data", {}).get("source", "")
    if is_hub_id(origin):
        text.data.base_model = origin.partition("@")[0]
    if is_hub_id(name := source.removeprefix("hf:").partition(":")[0]) and source.startswith("hf:"):
        text.data.datasets = [name]
    card.write_text(str(text), encoding="utf-8", newline="\n")
