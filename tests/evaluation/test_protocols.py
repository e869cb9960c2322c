import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from rich.console import Console

from ditlab import load
from ditlab.config.evaluation import Evaluation
from ditlab.core.errors import InputError
from ditlab.data.base import InMemory
from ditlab.data.builtin.digits import digits, held_out_digits
from ditlab.evaluation import frechet_distance, generated
from ditlab.evaluation import protocols as protocol
from ditlab.evaluation.features import open_features
from ditlab.evaluation.protocols import evaluate
from ditlab.evaluation.references import Reference, make_reference, read_reference, write_reference
from ditlab.evaluation.sweeps import sweep
from ditlab.inference.samples import Samples

QUIET = Console(quiet=True)
SETTINGS = Evaluation(reference="digits-held-out", count=100, steps=2, batch_size=50, device="cpu")


@pytest.fixture(scope="module")
def features():
    return open_features("digits")


@pytest.fixture
def model(tmp_path):
    pipe = tiny_pipeline(classes=10)
    pipe.classes = [str(i) for i in range(10)]
    pipe.save(tmp_path / "model")
    return str(tmp_path / "model")


def reference_of(pictures, features, source="somewhere"):
    return make_reference(source, pictures, features, QUIET)


class TestReference:
    def test_there_and_back(self, tmp_path, features):
        made = reference_of(digits(), features)
        made.save(tmp_path / "a.npz")
        read = read_reference(tmp_path / "a.npz", features, QUIET, keep=True)
        assert read.about == made.about | {"size": [8, 8], "count": 1437}
        assert np.array_equal(read.statistics.features.covariance, made.statistics.features.covariance)
        assert np.array_equal(read.statistics.kept, made.statistics.kept)
        with np.load(tmp_path / "a.npz") as arrays:  # as ADM's evaluator would
            direct = features(digits().images).features.double().numpy()
            np.testing.assert_allclose(arrays["mu"], direct.mean(0), rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(arrays["sigma"], np.cov(direct, rowvar=False), rtol=1e-5, atol=1e-8)

    @pytest.mark.slow
    def test_keeps_an_even_part_of_the_features(self, features):
        made = make_reference("x", digits(), features, QUIET, keep=3)
        np.testing.assert_allclose(
            made.statistics.kept, features(digits().images[[0, 718, 1436]]).features.numpy(), rtol=1e-5, atol=1e-6
        )
        assert make_reference("x", digits(), features, QUIET, keep=0).statistics.kept is None

    def test_of_other_features(self, tmp_path, features):
        made = reference_of(digits(), features, "digits")
        Reference(made.statistics, made.about | {"features": "inception"}).save(tmp_path / "a.npz")
        with pytest.raises(InputError, match="has the features inception, not digits; make a reference of"):
            read_reference(tmp_path / "a.npz", features, QUIET, keep=False)
        Reference(made.statistics, made.about | {"feature_weights": "other"}).save(tmp_path / "a.npz")
        with pytest.raises(InputError, match="has the feature weights other"):
            read_reference(tmp_path / "a.npz", features, QUIET, keep=False)

    def test_stored_statistics_of_adm_are_used_rather_than_its_images(self, tmp_path, features):
        images = digits().images[:20].permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / "adm.npz", images, mu=np.zeros(64), sigma=np.eye(64), mu_s=np.ones(9), sigma_s=np.eye(9))

        class Inception(type(features)):
            name = "inception"

        fake = Inception.__new__(Inception)
        fake.__dict__ = vars(features) | {"name": "inception"}
        read = read_reference(tmp_path / "adm.npz", fake, QUIET, keep=True)
        assert np.array_equal(read.statistics.features.covariance, np.eye(64))
        assert read.statistics.spatial.mean.tolist() == [1] * 9
        np.testing.assert_allclose(
            read.statistics.kept, features(digits().images[:20]).features.numpy(), rtol=1e-5, atol=1e-6
        )
        assert read.about["size"] == [8, 8]
        assert read_reference(tmp_path / "adm.npz", fake, QUIET, keep=False).statistics.kept is None
        with pytest.raises(InputError, match="in Inception's features, not digits"):
            read_reference(tmp_path / "adm.npz", features, QUIET, keep=False)

    def test_without_variance_or_of_nothing(self, tmp_path, features):
        np.savez(tmp_path / "a.npz", other=np.zeros(3))
        with pytest.raises(InputError, match="holds other; give a reference with mu and sigma"):
            read_reference(tmp_path / "a.npz", features, QUIET, keep=False)
        made = reference_of(digits(), features)
        gaussian = replace(made.statistics.features, covariance=np.zeros((64, 64)))
        Reference(replace(made.statistics, features=gaussian), made.about).save(tmp_path / "b.npz")
        with pytest.raises(InputError, match="no variance"):
            read_reference(tmp_path / "b.npz", features, QUIET, keep=False)

    def test_that_was_damaged(self, tmp_path, features):
        reference_of(digits(), features).save(tmp_path / "a.npz")
        content = bytearray((tmp_path / "a.npz").read_bytes())
        content[content.index(b"features.npy") + 4000] ^= 1
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(InputError, match="is damaged: its statistics are not those that were written"):
            read_reference(tmp_path / "a.npz", features, QUIET, keep=True)

    def test_resumes_and_is_shared_by_processes(self, tmp_path, features, monkeypatch):
        monkeypatch.setattr("ditlab.evaluation.gather.BLOCK", 100)
        monkeypatch.setattr("ditlab.evaluation.gather.SAVE_EVERY", 0.0)
        whole = write_reference("digits", digits(), features, tmp_path / "whole.npz", QUIET, keep=50)
        data, fetch, calls = digits(), InMemory.fetch_readable, []

        def stops(self, indices):
            calls.append(len(indices))
            if len(calls) == 5:
                raise KeyboardInterrupt
            return fetch(self, indices)

        monkeypatch.setattr(InMemory, "fetch_readable", stops)

        def part(**place):
            return write_reference("digits", data, features, tmp_path / "a.npz", QUIET, keep=50, **place)

        with pytest.raises(KeyboardInterrupt):
            part()
        assert part(rank=1, world=2) is None
        found = part(rank=0, world=2)
        assert sum(calls) - calls[4] == 1437  # each once
        assert found.about == whole.about | {"hash": found.about["hash"]}
        np.testing.assert_allclose(
            found.statistics.features.covariance, whole.statistics.features.covariance, rtol=1e-9, atol=1e-12
        )
        assert np.array_equal(found.statistics.kept, whole.statistics.kept)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "whole.npz"]

    def test_with_images_for_the_evaluator_of_adm(self, tmp_path, features):
        write_reference("digits", digits(), features, tmp_path / "a.npz", QUIET, keep=300, with_images=True)
        with np.load(tmp_path / "a.npz") as arrays:
            assert {"arr_0", "mu", "sigma"} < {*arrays.files}
            pictures, kept = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2), arrays["features"]
        np.testing.assert_allclose(features(pictures).features.numpy(), kept, rtol=1e-5, atol=1e-5)
        read = read_reference(tmp_path / "a.npz", features, QUIET, keep=True)
        assert np.array_equal(read.statistics.kept, kept)


class TestEvaluate:
    def test_result_is_that_of_the_images(self, model, features, tmp_path):
        result = evaluate(model, SETTINGS, QUIET, name="mine")
        pipe = tiny_pipeline(classes=10)
        drawn = pipe([i % 10 for i in range(100)], seeds=range(100), num_inference_steps=2, output_type="pt").images
        pixels = (drawn * 255).round().byte()
        made = features(pixels)
        real = features(held_out_digits().images).features.numpy()
        assert result.metrics["fd_digits"] == pytest.approx(frechet_distance(made.features.numpy(), real), rel=1e-5)
        right = (made.probabilities.argmax(1) == torch.arange(100) % 10).float().mean().item()
        assert result.metrics["accuracy"] == pytest.approx(right)
        assert list(result.metrics) == [
            "fd_digits", "inception_score", "precision", "recall", "kd_digits", "kd_digits_error", "accuracy",
        ]  # fmt: skip
        written = json.loads((result.folder / "result.json").read_text())
        assert written["fd_digits"] == result.metrics["fd_digits"]
        assert written["protocol"]["num_inference_steps"] == 2
        assert len(written["protocol"]["model"]["weights_hash"]) == 16
        assert written["hardware"]["torch"] == torch.__version__
        assert sorted(path.name for path in result.folder.iterdir()) == ["grid.png", "result.json"]
        assert result.folder.parent == tmp_path / "model" / "evaluations"
        assert Image.open(result.folder / "grid.png").width > 400

    @pytest.mark.slow
    def test_in_bfloat16_it_is_that_of_the_prepared_pipeline(self, model, features):
        plain = evaluate(model, SETTINGS, QUIET)
        result = evaluate(model, replace(SETTINGS, precision="bfloat16"), QUIET)
        drawn, _ = generated.samples_of(load(model, device="cpu").prepared("bfloat16"), SETTINGS)
        made = features(drawn.fetch(torch.arange(100)).x).features.numpy()
        expected = frechet_distance(made, features(held_out_digits().images).features.numpy())
        assert result.metrics["fd_digits"] == pytest.approx(expected, rel=1e-5)
        assert plain.metrics["fd_digits"] != pytest.approx(expected, rel=1e-5)
        assert [each.protocol["precision"] for each in (plain, result)] == ["float32", "bfloat16"]
        assert result.protocol["model"] == plain.protocol["model"]

    @pytest.mark.slow
    def test_the_same_protocol_is_not_run_again_and_another_is(self, model):
        first = evaluate(model, SETTINGS, QUIET)
        stamp = (first.folder / "result.json").stat().st_mtime_ns
        again = evaluate(model, SETTINGS, QUIET)
        assert again.metrics == first.metrics
        assert (first.folder / "result.json").stat().st_mtime_ns == stamp
        other = evaluate(model, replace(SETTINGS, seed=1), QUIET)
        assert other.folder != first.folder
        assert other.metrics["fd_digits"] != first.metrics["fd_digits"]

    @pytest.mark.slow
    def test_two_processes_find_what_one_does(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr("ditlab.evaluation.gather.BLOCK", 32)
        alone = evaluate(model, SETTINGS, QUIET)
        assert evaluate(model, SETTINGS, QUIET, out=tmp_path / "two", rank=0, world=2) is None
        both = evaluate(model, SETTINGS, QUIET, out=tmp_path / "two", rank=1, world=2)
        assert both.metrics == pytest.approx(alone.metrics, rel=1e-6)

    @pytest.mark.slow
    def test_settings_that_change_the_images_change_the_protocol(self, model, tmp_path):
        first = evaluate(model, SETTINGS, QUIET)
        config = tmp_path / "model" / "config.json"
        text = config.read_text()
        config.write_text(text.replace('"target": "velocity"', '"target": "eps"'))
        other = evaluate(model, SETTINGS, QUIET)
        assert other.metrics["fd_digits"] != first.metrics["fd_digits"]
        config.write_text(text)
        assert evaluate(model, SETTINGS, QUIET).metrics == first.metrics
        (first.folder / "result.json").write_text("{")
        with pytest.raises(InputError, match="is damaged"):
            evaluate(model, SETTINGS, QUIET)

    def test_a_result_keeps_the_machine_that_it_came_from(self, model):
        first = evaluate(model, SETTINGS, QUIET)
        file = first.folder / "result.json"
        file.write_text(file.read_text().replace(f'"version": "{first.version}"', '"version": "0.0.9"'))
        assert evaluate(model, SETTINGS, QUIET).as_json() == json.loads(file.read_text())

    @pytest.mark.slow
    def test_images_that_are_replaced_are_scored_again(self, tmp_path):
        images = digits().images[:200].permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / "a.npz", images)
        first = evaluate(str(tmp_path / "a.npz"), SETTINGS, QUIET, out=tmp_path).metrics
        np.savez(tmp_path / "a.npz", 255 - images)
        assert evaluate(str(tmp_path / "a.npz"), SETTINGS, QUIET, out=tmp_path).metrics != first

    def test_a_folder_of_images_is_not_changed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for i in range(70):
            home = tmp_path / "pictures" / str(i % 2)
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits().images[i, 0].numpy()).save(home / f"{i}.png")
        first = evaluate("pictures", SETTINGS, QUIET)
        assert first.folder.parent.absolute() == tmp_path / "evaluations"
        assert evaluate("pictures", SETTINGS, QUIET).metrics == first.metrics

    def test_settings_without_effect_on_existing_images_are_reported(self, tmp_path):
        np.savez(tmp_path / "a.npz", digits().images[:100].permute(0, 2, 3, 1).numpy())
        console, name = Console(record=True, quiet=False, width=300, file=io.StringIO()), str(tmp_path / "a.npz")
        settings = Evaluation(reference="digits-held-out", batch_size=50, device="cpu", metrics=("frechet",))
        evaluate(name, settings, console, out=tmp_path)
        assert "without effect" not in console.export_text()
        evaluate(name, replace(settings, steps=2, seed=7, count=50), console, out=tmp_path)
        line = f"all 100 images of {name} are read; without effect on them: steps, seed, count"
        assert line in console.export_text().splitlines()

    @pytest.mark.slow
    def test_images_that_exist_already(self, tmp_path):
        images = digits().images[:200].permute(0, 2, 3, 1).numpy()
        np.savez(tmp_path / "a.npz", images)
        result = evaluate(str(tmp_path / "a.npz"), SETTINGS, QUIET, out=tmp_path)
        assert "accuracy" not in result.metrics  # no labels
        assert result.metrics["fd_digits"] < 5
        assert evaluate("digits", SETTINGS, QUIET, out=tmp_path).metrics["accuracy"] > 0.97

    @pytest.mark.slow
    def test_expectation(self, model):
        value = evaluate(model, SETTINGS, QUIET).metrics["fd_digits"]
        met = evaluate(model, replace(SETTINGS, expect=value * 1.01), QUIET).expected
        assert met == {
            "metric": "fd_digits",
            "value": value * 1.01,
            "within": pytest.approx(value * 0.0202),
            "met": True,
        }
        assert not evaluate(model, replace(SETTINGS, expect=value + 1, within=0.5), QUIET).expected["met"]

    def test_few_images_are_reported(self, model):
        assert (
            "40 images do not determine a covariance of 64"
            in evaluate(model, replace(SETTINGS, count=40), QUIET).notes[-1]
        )

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"reference": ""}, "give a reference"),
            ({"count": 101}, "101 images cannot be shared equally among 10 classes; give a count of 100 or 110, or"),
            ({"count": 8}, "8 images cannot be shared equally among 10 classes; give a count of 10, or random labels"),
            ({"count": 1}, "count 1 and batch size"),
            ({"within": 0.1}, "expect is not set; remove it or set expect"),
            ({"metrics": ("frechett",)}, 'did you mean "frechet"'),
            ({"metrics": ("spatial",)}, "spatial needs spatial, which the features digits do not provide"),
            ({"features": "digit"}, 'did you mean "digits"'),
            ({"feature_weights": "a.pt"}, "take no weights"),
            ({"device": "cuda:9"}, "cannot be used"),
            ({"reference": "nowhere.npz"}, "no file nowhere.npz"),
        ],
    )
    def test_mistakes(self, model, changes, words):
        with pytest.raises(InputError, match=words):
            evaluate(model, replace(SETTINGS, **changes), QUIET)

    def test_a_source_of_another_type(self):
        with pytest.raises(InputError, match=r"^the source is a ndarray; give a pipeline, the path of a model, or"):
            evaluate(np.zeros((4, 8, 8)), SETTINGS, QUIET)

    def test_a_model_whose_samples_are_not_finite(self, tmp_path):
        pipe = tiny_pipeline(classes=10)
        with torch.no_grad():
            pipe.net.final_layer.linear.bias.fill_(torch.nan)
        pipe.save(tmp_path / "model")
        with pytest.raises(
            InputError,
            match=r"the image of seed 0 is not finite from step 1 of \d+; its weights final_layer.linear.bias are not",
        ):
            evaluate(str(tmp_path / "model"), SETTINGS, QUIET)
        assert not list(tmp_path.rglob("result.json"))

    def test_images_that_are_all_the_same(self, tmp_path):
        np.savez(tmp_path / "a.npz", np.repeat(digits().images[:1].permute(0, 2, 3, 1).numpy(), 70, 0))
        with pytest.raises(InputError, match="all 70 images have the same features; check the images"):
            evaluate(str(tmp_path / "a.npz"), replace(SETTINGS, batch_size=3), QUIET, out=tmp_path / "out")
        with pytest.raises(InputError, match="all 70 images have the same features; check the images"):
            evaluate("digits", replace(SETTINGS, reference=str(tmp_path / "a.npz"), features="digits"), QUIET)

    @pytest.mark.slow
    def test_an_interrupted_evaluation_goes_on(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr("ditlab.evaluation.gather.BLOCK", 20)
        monkeypatch.setattr("ditlab.evaluation.gather.SAVE_EVERY", 0.0)
        whole = evaluate(model, SETTINGS, QUIET, out=tmp_path / "whole")
        fetch, calls = Samples.fetch, []

        def stops(self, indices):
            calls.append(indices.tolist())
            if len(calls) == 4:
                raise KeyboardInterrupt
            return fetch(self, indices)

        monkeypatch.setattr(Samples, "fetch", stops)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, SETTINGS, QUIET, out=tmp_path / "a")
        found = evaluate(model, SETTINGS, QUIET, out=tmp_path / "a")
        assert [indices[0] for indices in calls] == [0, 20, 40, 60, 60, 80, 0]  # at last the grid
        assert found.metrics == pytest.approx(whole.metrics, rel=1e-6)
        assert sorted(path.name for path in found.folder.iterdir()) == ["grid.png", "result.json"]

    def test_other_weights_of_inception_are_said(self, features):
        own = type(features).__new__(type(features))
        own.__dict__ = vars(features) | {"name": "inception", "weights": "0123456789abcdef"}
        reference = reference_of(digits(), own)
        reported = "the Inception weights (0123456789abcdef) are not the published file (6726825d...)"
        assert any(note.startswith(reported) for note in protocol.remarks(50_000, 50_000, own, reference))
        own.weights = "6726825d0af5f729"
        assert protocol.remarks(50_000, 50_000, own, reference) == []

    def test_reference_of_another_size(self, model, tmp_path, features):
        made = reference_of(digits(), features, "big")
        Reference(made.statistics, made.about | {"size": [16, 16]}).save(tmp_path / "a.npz")
        with pytest.raises(InputError, match="images of 8x8 against a reference of 16x16; make a reference of"):
            evaluate(model, replace(SETTINGS, reference=str(tmp_path / "a.npz")), QUIET)


def test_a_folder_of_images_as_reference_is_preprocessed_as_for_training(tmp_path, model):
    home = tmp_path / "pictures"
    home.mkdir()
    for i in range(70):  # twice as large as the model's, and of several sizes
        image = Image.fromarray(digits().images[i, 0].numpy()).resize((16, 16 + i % 3), Image.Resampling.NEAREST)
        image.save(home / f"{i}.png")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["recipe"] = {"data": {"fit": "stretch", "grey": True}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    found = evaluate(model, replace(SETTINGS, reference=str(home), features="digits"), QUIET).protocol["reference"]
    assert found["count"] == 70
    assert (found["size"], found["preprocessing"]["fit"], found["preprocessing"]["channels"]) == ([8, 8], "stretch", 1)


@pytest.mark.slow
def test_sweep_finds_the_best_with_its_error(model, tmp_path, monkeypatch):
    made = []
    make = protocol.make_reference
    monkeypatch.setattr(protocol, "make_reference", lambda *values: made.append(values[0]) or make(*values))
    done = sweep(model, SETTINGS, {"steps": [1, 3], "guidance": [2.0]}, QUIET, repeats=2, out=tmp_path / "s")
    assert [tuple(point.settings.values()) for point in done.points] == [(1, 2.0), (3, 2.0)]
    alone = [
        evaluate(model, replace(SETTINGS, steps=3, guidance=2.0, seed=seed), QUIET).metrics["fd_digits"]
        for seed in (0, 1)
    ]
    last = done.points[1]
    assert last.values == pytest.approx(alone)
    assert last.error == pytest.approx(abs(alone[0] - alone[1]) / 2)
    assert made == [SETTINGS.reference] * 3  # once for the sweep, once for each of the two alone
    assert done.best.mean == min(point.mean for point in done.points)
    assert f"{done.best.mean:.4f}" in done.verdict()
    assert Image.open(tmp_path / "s" / "sweep.png").size == (720, 480)
    written = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert written["best"]["fd_digits"] == done.best.mean
    with pytest.raises(InputError, match="nothing to minimize among inception_score; add frechet"):
        sweep(model, replace(SETTINGS, metrics=("inception-score",)), {"steps": [1]}, QUIET, out=tmp_path / "s")
    with pytest.raises(InputError, match="nothing to sweep"):
        sweep(model, SETTINGS, {"steps": []}, QUIET)


@pytest.mark.slow
def test_a_pipeline_and_keywords_are_enough(model, tmp_path):
    pipe = load(model)
    words = {"reference": "digits-held-out", "count": 100, "batch_size": 50, "device": "cpu"}
    result = evaluate(pipe, out=tmp_path / "a", num_inference_steps=2, **words)
    assert result.metrics == evaluate(model, SETTINGS, QUIET).metrics
    changed = evaluate(pipe, SETTINGS, out=tmp_path / "a", steps=1)
    assert changed.protocol["num_inference_steps"] == 1
    with pytest.raises(InputError, match='did you mean "reference"'):
        evaluate(pipe, referense="digits")


def test_folders_of_results_keep_their_names():
    plan = tiny_pipeline().resolve(steps=2, guidance=1.5)
    assert generated.protocol_settings(plan) == {
        "num_inference_steps": 2, "sampler": "heun", "grid": "uniform", "guidance_scale": 1.5,
        "guidance_interval": [0.0, 1.0], "guidance_channels": None, "eta": None,
    }  # fmt: skip
    keys = {"grid", "interval", "labels", "steps", "sampler", "guidance", "guidance_channels", "eta"}
    assert keys <= SETTINGS.keys().keys()
    assert not {"schedule", "guidance_interval", "preset", "quality", "reuse"} & SETTINGS.keys().keys()
