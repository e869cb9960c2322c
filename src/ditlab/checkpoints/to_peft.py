"""Write the low-rank updates of a run as an adapter of peft."""

import json
from pathlib import Path

from ditlab.core.errors import InputError
from ditlab.core.io import replace_text
from ditlab.core.weights import ADAPTER, newest_checkpoint, read_tensors, write_tensors
from ditlab.inference.adapters import PREFIX, SETTINGS, UPDATES
from ditlab.inference.pipeline import Pipeline


def write_peft(pipe: Pipeline, target: Path, name: str) -> None:
    """Write a folder for `PeftModel.from_pretrained` and `Pipeline.with_adapter`.

    Raises:
        InputError: the model was not loaded from a run that keeps its updates apart.
    """
    source = Path(pipe.loaded_from.get("source", ""))
    file = (newest_checkpoint(source) or source) / ADAPTER
    if not file.is_file():
        raise InputError(
            f"{source} has no low-rank updates of its own; give a run that was trained with train.lora and "
            "train.lora_apart"
        )
    tensors = read_tensors(file)
    layers = sorted(key.partition(".lora_A.")[0] for key in tensors if ".lora_A." in key)
    whole = sorted({key.rpartition(".")[0] for key in tensors if ".lora_" not in key})
    if "" in whole:
        raise InputError(f"{source} trains parameters that are in no layer, for which peft has no layout")
    rank = next(value.shape[0] for key, value in tensors.items() if ".lora_A." in key)
    merged = pipe.net.state_dict()
    content = {key.replace(".default", ""): value for key, value in tensors.items() if ".lora_" in key}
    content |= {key: value for key, value in merged.items() if key.rpartition(".")[0] in whole}
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": pipe.config["lora"]["source"],
        "r": rank,
        "lora_alpha": rank,
        "target_modules": layers,
        "modules_to_save": whole or None,
        "bias": "none",
        "inference_mode": True,
    }
    write_tensors({f"{PREFIX}{key}": value.contiguous() for key, value in content.items()}, target / UPDATES)
    replace_text(target / SETTINGS, json.dumps(settings, indent=2) + "\n")
