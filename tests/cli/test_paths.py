"""A path that does not exist: each command names the nearest existing one."""

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run, an autoencoder, images, a recipe, labels and other files."""
    for folder in ("runs/demo", "autoencoders/small", "photos/cats"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("my.toml", "labels.csv", "photos.npz", "schedules.json", "start.png", "map.toml", "plugin.py"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("watch runs/dmeo", "no run at runs/dmeo; did you mean runs/demo?"),
        ("watch nothing", "no run at nothing, which does not exist; give the folder of a run"),
        ("watch photos", "photos is not a training run: there is no recipe.toml; give the folder of a run"),
        ("sample runs/dmeo", "no model at runs/dmeo; did you mean runs/demo?"),
        (
            "sample runs/other",
            "no model at runs/other, which does not exist; give a model folder (with config.json), a run folder or a "
            "file of weights",
        ),
        ("evaluate runs/dmeo --reference digits", "no model at runs/dmeo; did you mean runs/demo?"),
        ("sweep runs/dmeo --reference digits --try-steps 1 2", "no model at runs/dmeo; did you mean runs/demo?"),
        ("memorization runs/dmeo --training digits --held-out digits-held-out", "no model at runs/dmeo; did you mean"),
        ("tune runs/dmeo --out new.json", "no model at runs/dmeo; did you mean runs/demo?"),
        ("bench runs/dmeo", "no model at runs/dmeo; did you mean runs/demo?"),
        ("export runs/dmeo x --to onnx", "no model at runs/dmeo; did you mean runs/demo?"),
        ("convert runs/dmeo x --to ditlab", "no model at runs/dmeo; did you mean runs/demo?"),
        ("average runs/dmeo x --width 0.1", "no run at runs/dmeo; did you mean runs/demo?"),
        ("train digits --out x --init-from runs/dmeo", "no model at runs/dmeo; did you mean runs/demo?"),
        (
            "train digits --out x --data.autoencoder autoencoders/smal",
            "no autoencoder at autoencoders/smal; did you mean autoencoders/small?",
        ),
        (
            "encode digits --autoencoder autoencoders/smal --out x",
            "no autoencoder at autoencoders/smal; did you mean autoencoders/",
        ),
        ("sample photos", "no model at photos; give a model folder (with config.json), a run folder or a file of"),
        ("distill runs/dmeo x", "no model at runs/dmeo; did you mean runs/demo?"),
        ("distill models/teacher.safetensors x", "no model at models/teacher.safetensors, which does not exist; give"),
        (
            "train digits --out x --data.autoencoder vae/vae.safetensors",
            "no autoencoder at vae/vae.safetensors, which does not exist; give its folder, its file or a hub id",
        ),
        ("train my.tmol --out x", 'no recipe "my.tmol"; did you mean my.toml?'),
        ("plan my.tmol", 'no recipe "my.tmol"; did you mean my.toml?'),
        ("study my.tmol", 'no recipe "my.tmol"; did you mean my.toml?'),
        ("train digits --out x --data.source photso", 'no data "photso"; did you mean photos?'),
        ("train-autoencoder photso --out x", 'no data "photso"; did you mean photos?'),
        ("data photso", 'no data "photso"; did you mean photos?'),
        ("reference photso --out x.npz --features digits", 'no data "photso"; did you mean photos?'),
        ("data photos --labels lables.csv", "no labels lables.csv; did you mean labels.csv?"),
        ("evaluate digits --reference photso.npz", "no file photso.npz; did you mean photos.npz?"),
        ("data glyps", 'no data "glyps"; give an existing folder of images, or did you mean "glyphs-SIZE"?'),
        ("info DiT-S/2 --import plugni.py", "there is no plug-in file plugni.py; did you mean plugin.py?"),
    ],
)
def test_the_message_names_the_nearest_path(ditlab, here, words, line):
    assert ditlab(*words.split(), code=2).err.strip().splitlines()[-1].startswith(f"ditlab: {line}")
