import pytest
import torch
from helpers import relative

from ditlab.config.sections import Diffusion
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import TARGETS, Objective
from ditlab.diffusion.parametrizations import completed, make_objective
from ditlab.diffusion.process import (
    DDPM,
    PROCESSES,
    VP,
    Cosine,
    Linear,
    ScaledLinear,
    make_process,
    per_image,
    process_name,
    process_options,
)

TIMES = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)


def fixed(output):
    return lambda x, t, y: output


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_gives_back_x0_and_eps(process, target):
    objective = Objective(PROCESSES[process](), target)
    x0, eps = torch.randn(5, 2, 4, 4), torch.randn(5, 2, 4, 4)
    x = objective.process.add_noise(x0, eps, TIMES)
    a, b = (per_image(c, x) for c in TARGETS[target](objective.process, TIMES))
    prediction = objective.predict(a * x0 + b * eps, x, TIMES)
    assert relative(prediction.x0, x0) < 1e-4
    assert relative(prediction.eps, eps) < 1e-4
    assert objective.loss(fixed(a * x0 + b * eps), x0, None, TIMES, eps).abs().max() < 1e-10


def test_determinants_of_the_design():
    for process in (Linear(), Cosine()):
        alpha, sigma = process.alpha(TIMES), process.sigma(TIMES)
        expected = {"x0": -sigma, "eps": alpha, "v": alpha**2 + sigma**2}
        for target, value in expected.items():
            assert torch.allclose(Objective(process, target).determinant(TIMES), value)
    assert torch.allclose(Objective(Linear(), "velocity").determinant(TIMES), torch.ones(5, dtype=torch.float64))


def test_sampling_starts_where_the_target_is_safe():
    assert Objective(Linear(), "velocity").last_time() == 1
    assert Objective(Linear(), "eps").last_time() == pytest.approx(0.995)
    assert Objective(DDPM(), "eps").last_time() == 1


def test_hybrid_loss_agrees_with_improved_ddpm(golden):
    vectors = golden("iddpm")
    objective = Objective(DDPM(), "eps", learn_variance=True)
    t = (vectors["train.t"].double() + 1) / 1000
    x0, eps = vectors["train.x0"], vectors["train.eps"]
    assert relative(objective.process.add_noise(x0, eps, t), vectors["train.x_t"]) < 1e-5
    loss = objective.loss(fixed(vectors["train.model_output"]), x0, None, t, eps)
    assert ((loss - vectors["train.loss"]) / vectors["train.loss"]).abs().max() < 1e-5
    mean_squares = Objective(DDPM(), "eps").loss(fixed(vectors["train.model_output"][:, :4]), x0, None, t, eps)
    assert ((mean_squares - vectors["train.mse"]) / vectors["train.mse"]).abs().max() < 1e-5
    bound = loss - mean_squares
    assert ((bound - vectors["train.vb"]) / vectors["train.vb"]).abs().max() < 1e-4  # a difference of float32s


def test_variational_bound_trains_the_variance_half_only(golden):
    vectors = golden("iddpm")
    x0, eps = vectors["train.x0"], vectors["train.eps"]
    t = (vectors["train.t"].double() + 1) / 1000
    gradients = {}
    for learn_variance in (False, True):
        output = vectors["train.model_output"].clone().requires_grad_()
        seen = output if learn_variance else output[:, :4]
        Objective(DDPM(), "eps", learn_variance=learn_variance).loss(fixed(seen), x0, None, t, eps).sum().backward()
        gradients[learn_variance] = output.grad
    assert torch.allclose(gradients[True][:, :4], gradients[False][:, :4])
    assert gradients[True][:, 4:].abs().sum() > 0


@pytest.mark.parametrize(
    ("target", "weight"),
    [
        ("eps", lambda snr: snr.clamp(max=5) / snr),  # Hang et al. 2023, section 3.4
        ("x0", lambda snr: snr.clamp(max=5)),
        ("v", lambda snr: snr.clamp(max=5) / (snr + 1)),
    ],
)
def test_min_snr_weights_agree_with_the_paper(target, weight):
    x0, eps, output = (torch.randn(5, 1, 4, 4) for _ in range(3))
    process = Cosine()
    plain = Objective(process, target).loss(fixed(output), x0, None, TIMES, eps)
    weighted = Objective(process, target, weight="min-snr").loss(fixed(output), x0, None, TIMES, eps)
    snr = (process.alpha(TIMES) / process.sigma(TIMES)) ** 2
    assert torch.allclose(weighted / plain, weight(snr).float(), rtol=1e-4)


def test_stratified_times_fill_every_quantile():
    generator = torch.Generator().manual_seed(3)
    for time, quantile in (
        ("uniform", lambda t: t),
        ("logit-normal", lambda t: torch.special.ndtr((t.logit() + 0.4) / 1.2)),
    ):
        objective = Objective(time=time, time_mean=-0.4, time_scale=1.2, stratified=True)
        t = objective.draw_times(64, generator)
        assert sorted((quantile(t) * 64).floor().long().tolist()) == list(range(64))
        assert t.tolist() != sorted(t.tolist())


def test_logit_normal_has_its_mean_and_scale():
    t = Objective(time="logit-normal", time_mean=0.5, time_scale=0.8).draw_times(
        100_000, torch.Generator().manual_seed(0)
    )
    logits = t.logit()
    assert logits.mean().item() == pytest.approx(0.5, abs=0.02)
    assert logits.std().item() == pytest.approx(0.8, abs=0.02)


def test_discrete_process_samples_its_indices_evenly():
    process = DDPM()
    clock = process.clock(
        Objective(process, "eps", time="uniform").draw_times(200_000, torch.Generator().manual_seed(0))
    )
    assert torch.allclose(clock, clock.round(), atol=1e-9)
    counts = torch.bincount(clock.round().long(), minlength=1000)
    assert len(counts) == 1000
    assert counts.min() > 120
    assert counts.max() < 290


def test_learned_variance_needs_a_discrete_process():
    with pytest.raises(InputError, match='needs the process "ddpm"'):
        Objective(learn_variance=True)


def test_unknown_names_are_rejected():
    with pytest.raises(InputError, match='did you mean "velocity"'):
        Objective(target="velocty")


class TestRecipes:
    def test_defaults_are_rectified_flow(self):
        settings = completed(Diffusion())
        assert (settings.process, settings.target, settings.learn_variance) == ("linear", "velocity", False)
        assert make_objective(Diffusion()) == Objective()

    @pytest.mark.parametrize(
        ("process", "options", "expected"),
        [
            ("linear", {"clock_rate": -1.0, "clock_start": 1.0}, Linear(-1.0, 1.0)),
            ("scaled-linear", {"beta_start": 0.0015, "beta_end": 0.0195}, ScaledLinear(1000, 0.0015, 0.0195)),
            ("scaled-linear", {"clock_start": 1}, ScaledLinear(clock_start=1.0)),
            ("ddpm", {"timesteps": 500.0}, DDPM(500)),
            ("vp", {"beta_max": 10.0, "clock_rate": 1000.0}, VP(1000.0, 0.0, 0.1, 10.0)),
        ],
    )
    def test_a_recipe_can_state_every_process(self, process, options, expected):
        settings = Diffusion(process=process, process_options=options, target="eps")
        assert make_objective(settings).process == expected
        assert make_process(process_name(expected), process_options(expected)) == expected

    def test_options_at_their_default_are_not_kept(self):
        settings = completed(Diffusion(process="ddpm", process_options={"timesteps": 1000.0, "beta_end": 0.01}))
        assert settings.process_options == {"beta_end": 0.01}

    def test_process_and_target_of_the_source_unless_one_is_set(self):
        source = Objective(DDPM(500), "eps", learn_variance=True)
        taken = completed(Diffusion(), source)
        assert (taken.process, taken.process_options, taken.target) == ("ddpm", {"timesteps": 500}, "eps")
        assert taken.learn_variance
        assert not completed(Diffusion(learn_variance=False), source).learn_variance
        own = completed(Diffusion(target="x0"), source)
        assert (own.process, own.target, own.learn_variance) == ("linear", "x0", False)

    @pytest.mark.parametrize("options", [{"timesteps": 0}, {"beta_start": -1.0}, {"beta_end": 2.0}])
    def test_chains_that_cannot_be(self, options):
        with pytest.raises(InputError, match="give"):
            make_process("ddpm", options)


def test_a_parametrization_that_a_saved_model_cannot_name_is_refused():
    class Unnamed(Objective):
        pass

    with pytest.raises(InputError, match=r"Unnamed is not registered; give it to ditlab\.register_parametrization"):
        make_objective(Diffusion(), Unnamed)
