"""Metadata that depend on where ditlab is published: the project URLs, and the links of the README on an index page.

The address of the repository is the environment variable DITLAB_REPOSITORY (https://HOST/OWNER/NAME), which the release
workflow sets, and DITLAB_REVISION is the tag. A build without them has no project URLs, and relative links of the
README become plain text, because an index page cannot follow them.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

IMAGE = r"!\[[^\]]*\]\([^)]*\)"  # a badge is an image in the text of a link
LINK = re.compile(rf"(!?)\[((?:{IMAGE}|[^\]])*)\]\((?!https?:|#)([^)]*)\)")
PAGES = {"Documentation": "docs/index.md", "Changelog": "CHANGELOG.md"}


def absolute(text: str, repository: str, revision: str) -> str:
    """Return Markdown in which relative links and images are absolute, or without them if there is no repository."""

    def replaced(match: re.Match[str]) -> str:
        is_image, words, path = match.groups()
        if not repository:
            return "" if is_image else words
        return f"{is_image}[{words}]({repository}/{'raw' if is_image else 'blob'}/{revision}/{path})"

    return LINK.sub(replaced, text)


def urls(repository: str, revision: str) -> dict[str, str]:
    """Return the project URLs of a repository."""
    pages = {name: f"{repository}/blob/{revision}/{path}" for name, path in PAGES.items()}
    return {"Source": repository, "Issues": f"{repository}/issues"} | pages if repository else {}


class PublishedMetadata(MetadataHookInterface):
    """Set `readme` and `urls`."""

    def update(self, metadata: dict) -> None:
        repository = os.environ.get("DITLAB_REPOSITORY", "").rstrip("/")
        revision = os.environ.get("DITLAB_REVISION", "main")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository, revision)}
        metadata["urls"] = urls(repository, revision)
