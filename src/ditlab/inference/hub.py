"""Upload a model to the Hugging Face hub."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ditlab.core.hub import hub_library
from ditlab.inference import saving
from ditlab.inference.finite import check_weights

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline


def push(pipe: "Pipeline", repository: str, *, private: bool, license: str | None) -> str:
    """Upload a model folder, see `Pipeline.push_to_hub`; returns the URL of the repository."""
    hub = hub_library()
    check_weights(pipe)
    if license is not None:
        pipe.config["license"] = license
    with tempfile.TemporaryDirectory() as draft:
        folder = saving.write_whole(pipe, Path(draft), repository.rpartition("/")[2])
        api = hub.HfApi()
        address = str(api.create_repo(repository, private=private, exist_ok=True))
        # One commit, which also removes files that an earlier model had and this one does not have.
        api.upload_folder(repo_id=repository, folder_path=folder, delete_patterns=sorted(saving.FILES))
    return address
