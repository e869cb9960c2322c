"""Write the model card (README.md) of a saved model from its configuration."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ditlab.core.printable import one_line
from ditlab.core.units import counted
from ditlab.core.values import PixelValues

OLD_LICENSE = "licen" + "ce"  # keyword and config key in version 0.1, still accepted
CARD = """---
library_name: ditlab
pipeline_tag: {task}
license: {license}
---
# {title}

{facts}

```python
import ditlab

pipe = ditlab.load({name!r})  # this folder, or its hub id
pipe({label}, seeds=range(4)).images
```

With diffusers, which runs `pipeline.py` of this folder (`pip install diffusers ditlab`):

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({name!r}, custom_pipeline="pipeline", trust_remote_code=True)
pipe({label}).images
```
"""


def about_images(channels: int, values: PixelValues) -> str:
    """Channels, type and range of the images of a model, in words."""
    shown = f"; PNG files show {words(values.shown_of(channels))}" if values.loses(channels) else ""
    return f"{counted(channels, 'channel')} of {values.summary()}{shown}"


def words(shown: Sequence[int]) -> str:
    """Numbers of channels in words: "channels 1, 2, 3"."""
    return f"channel{'s' if len(shown) > 1 else ''} {', '.join(map(str, shown))}"


def model_card(config: Mapping[str, Any], name: str, channels: int) -> str:
    """Return the model card as Markdown with metadata for the hub.

    Args:
        config: the content of `config.json`, see `Pipeline.describe`. Names in it may contain anything.
        name: name of the model: that of its folder, or a hub id.
        channels: channels of its images.
    """
    net, objective, classes = config["backbone"], config["objective"], config["classes"]
    names = f" ({', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''})" if classes else ""
    prompts = config.get("prompts", []) if net.get("text_length") else []
    reads = f"text of up to {net['text_length']} tokens" if prompts else f"{counted(net['classes'], 'class')}{names}"
    sides = "x".join(map(str, (net["channels"], *net["size"])))
    seen = (
        f"{counted(config['images_seen'], 'image')}, including repeats" if "images_seen" in config else "not recorded"
    )
    facts = {
        "network": f"{net['name']}, input {sides}, {reads}",
        "objective": f"{objective['target']} on the {objective['process']['name']} process{built_in(objective)}",
        "autoencoder": config["autoencoder"]["kind"],
        "trained on": seen,
        "sampled with": ", ".join(f"{key} {value}" for key, value in config.get("sample", {}).items()) or "no default",
        "written by": f"ditlab {config['version']}",
    }
    if config["autoencoder"]["kind"] != "absent":
        facts["images"] = about_images(channels, PixelValues.read(config.get("values")))
    if "attribution" in config:
        facts["images of the training"] = config["attribution"]
    if "note" in config:
        facts["note"] = config["note"]
    return CARD.format(
        license=yaml_text(str(config.get("license", config.get(OLD_LICENSE, "other")))),
        title=literal(name.rpartition("/")[2]),
        name=name,
        facts="\n".join(f"- {key}: {literal(value)}" for key, value in facts.items()),
        label=repr((classes or prompts)[0]) if classes or prompts else "None" if net["classes"] == 0 else "0",
        task="text-to-image" if prompts else "unconditional-image-generation",
    )


def built_in(objective: Mapping[str, Any]) -> str:
    """What a flow map and a model with built-in guidance have, as the end of a sentence; empty for other models."""
    if "guidance" not in objective:
        return ""
    scales = " to ".join(f"{scale:g}" for scale in dict.fromkeys(objective["guidance"]))
    counts = " or ".join(map(str, objective.get("steps", ())))
    kind = f", a flow map for {counts} {'step' if counts == '1' else 'steps'}" if counts else ""
    return f"{kind}, with guidance {scales} built in"


def literal(text: object) -> str:
    """A text in Markdown that shows as it is, on one line: signs of Markdown, tables and HTML are escaped."""
    return re.sub(r"[\\`*_\[\]|~#$]", r"\\\g<0>", html.escape(one_line(str(text)), quote=False))


def yaml_text(text: str) -> str:
    """A text as a value of YAML: a word as it is, any other text in quotes."""
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text, re.ASCII) else json.dumps(text)
