"""Change the default sampling settings of a finished run."""

import shutil
from dataclasses import replace
from pathlib import Path

from ditlab.config.reader import parse_recipe, read_toml, to_tables, to_toml
from ditlab.config.sampling import Sample
from ditlab.core.io import MANIFEST, held, replace_text, replacing, write_manifest
from ditlab.core.weights import newest_checkpoint
from ditlab.inference import saving
from ditlab.inference.pipeline import Pipeline


def set_defaults(pipe: Pipeline, run: Path, sample: Sample) -> None:
    """Change the sampling settings of a model, and save them in the recipe of its run and in its newest checkpoint.

    Either file is replaced as a whole, so that a process that is killed leaves a run that can be used and resumed.

    Args:
        pipe: the model that the run has trained.
        run: the run folder, which has a checkpoint.
        sample: the settings.

    Raises:
        InputError: another process works on the run, or the disk is full.
    """
    with held(run):
        recipe = parse_recipe(read_toml(run / "recipe.toml"), source=str(run))
        tables = to_tables(replace(recipe, sample=sample))
        checkpoint = newest_checkpoint(run)
        assert checkpoint is not None
        pipe.config |= {"sample": tables["sample"], "recipe": tables}
        with replacing(checkpoint) as draft:
            shutil.copytree(checkpoint, draft, ignore=shutil.ignore_patterns(MANIFEST))
            saving.write_others(pipe, draft, run.name)
            write_manifest(draft)
        replace_text(run / "recipe.toml", to_toml(tables))
