import math

import pytest
import torch
from helpers import mixture_denoiser, relative, wasserstein

from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Prediction
from ditlab.diffusion.guidance import cfg
from ditlab.diffusion.objective import Denoiser, Objective
from ditlab.diffusion.process import DDPM, PROCESSES, Cosine, Linear
from ditlab.diffusion.samplers import GRIDS, SAMPLERS, image_noise, time_grid
from ditlab.diffusion.samplers.adams_bashforth import integration_weights
from ditlab.diffusion.samplers.ddim import ddim
from ditlab.diffusion.samplers.ddpm import reverse_log_variance, reverse_mean

STOCHASTIC = ("ddpm", "sde")


def run(name, process, x, grid):
    generator = torch.Generator().manual_seed(1)

    def noise(like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    return list(SAMPLERS[name](mixture_denoiser(process), process, x, grid, noise))


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_denoiser_leads_to_the_data(sampler, process):
    path = PROCESSES[process]()
    x = torch.randn(1, 1, 100, 100)
    steps = run(sampler, path, x, time_grid("uniform", path, 50))
    assert [step.i for step in steps] == list(range(50))
    assert steps[-1].t == 0
    assert steps[-1].x.dtype is torch.float32
    assert wasserstein(x) > 0.15
    assert wasserstein(steps[-1].x) < 0.04


# The chain's last step is far longer than those before, where a high order extrapolates badly.
@pytest.mark.parametrize(("sampler", "factor"), [("dpmpp", 0.6), ("ab2", 0.6), ("ab4", 0.9), ("heun", 0.6)])
@pytest.mark.parametrize("steps", [8, 12, 20])
def test_higher_orders_beat_ddim_at_few_steps_of_ddpm(sampler, factor, steps):
    path, x = DDPM(), torch.randn(1, 1, 100, 100)
    grid = time_grid("uniform", path, steps)
    assert wasserstein(run(sampler, path, x, grid)[-1].x) < factor * wasserstein(run("ddim", path, x, grid)[-1].x)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("sampler", ["heun", "dpmpp", "ab4"])
def test_other_time_grids_lead_to_the_data_too(sampler, grid):
    path = DDPM() if grid == "leading" else Linear()
    assert wasserstein(run(sampler, path, torch.randn(1, 1, 100, 100), time_grid(grid, path, 50))[-1].x) < 0.04


@pytest.mark.slow
@pytest.mark.parametrize("process", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_order_of_convergence(process):
    """log2 of the ratio of errors when the steps are halved, against a far finer solution."""
    x = torch.randn(1, 1, 60, 60, dtype=torch.float64)

    def solution(sampler, steps):
        # Between the same two log-SNRs, where every solver works on a smooth stretch of the path.
        grid = process.time_of(torch.linspace(-4, 4, steps + 1, dtype=torch.float64))
        return run(sampler, process, x, grid)[-1].x

    exact = solution("ab4", 640)
    for sampler, order in {"ddim": 1, "euler": 1, "heun": 2, "dpmpp": 2, "ab2": 2, "ab4": 4}.items():
        errors = [(solution(sampler, steps) - exact).abs().mean().item() for steps in (40, 80)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.5), sampler


class Task:
    """The mixture, and without the label a standard normal distribution."""

    def __init__(self, process):
        self.process = process

    def __call__(self, x, t, s, condition):
        known = mixture_denoiser(self.process)(x, t)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        share = x / (alpha**2 + sigma**2)
        label = (condition.label == 0)[:, None, None, None]
        return Prediction(torch.where(label, known.x0, alpha * share), torch.where(label, known.eps, sigma * share))


@pytest.mark.slow
def test_high_orders_bear_the_bounds_of_guidance():
    """Where guidance begins a sample's way has a kink, behind which order 4 would be off by 4 to 7 times as much."""
    process = Linear()
    denoise = cfg(Task(process), *(Condition(label=torch.tensor([i])) for i in (0, 1)), 6.0, (0.0, 0.6))
    x = torch.randn(1, 1, 40, 40, dtype=torch.float64)

    def solution(sampler, steps):
        *_, last = SAMPLERS[sampler](denoise, process, x, time_grid("uniform", process, steps), None)
        return last.x

    exact = solution("heun", 400)
    for steps in (6, 8, 12):
        assert relative(solution("ab4", steps), exact) < 1.1 * relative(solution("ab2", steps), exact)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_stochastic_samplers_have_weak_order_one(sampler):
    """For Gaussian data the variance of the samples is known; its error halves with the steps."""
    process, deviation = Linear(), 0.5

    def denoise(x, t, s=None):
        alpha, sigma = process.alpha(t), process.sigma(t)
        share = 1 / ((alpha * deviation) ** 2 + sigma**2)
        return Prediction(alpha * deviation**2 * share * x, sigma * share * x)

    def error(steps):
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(1, 1, 1000, 1000, generator=generator)

        def noise(like):
            return torch.randn(like.shape, generator=generator)

        *_, last = SAMPLERS[sampler](denoise, process, x, time_grid("uniform", process, steps), noise)
        return abs(last.x.std().item() - deviation)

    assert math.log2(error(10) / error(20)) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("process", PROCESSES)
def test_euler_in_straight_coordinates_is_ddim(process):
    path = PROCESSES[process]()
    x = torch.randn(1, 1, 30, 30, dtype=torch.float64)
    grid = time_grid("uniform", path, 13)
    for euler, ddim_ in zip(run("euler", path, x, grid), run("ddim", path, x, grid), strict=True):
        assert torch.allclose(euler.x, ddim_.x, atol=1e-12)


@pytest.mark.slow
def test_ddim_with_eta_one_is_ancestral():
    path, x = DDPM(), torch.randn(1, 1, 200, 200)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    grid = time_grid("uniform", path, 20)
    exact = mixture_denoiser(path)

    def denoise(x, t, s=None):  # a "learned" variance that is always the posterior's, which is DDIM's
        prediction = exact(x, t)
        return Prediction(prediction.x0, prediction.eps, torch.zeros_like(x))

    ends = []
    for sampler, generator, options in zip((ddim, SAMPLERS["ddpm"]), generators, ({"eta": 1.0}, {}), strict=True):

        def noise(like, generator=generator):
            return torch.randn(like.shape, generator=generator)

        ends.append(list(sampler(denoise, path, x, grid, noise, **options))[-1].x)
    assert relative(ends[0], ends[1]) < 1e-4


@pytest.mark.parametrize("steps", [10, 250])
def test_ancestral_step_agrees_with_improved_ddpm(golden, steps):
    vectors = golden("iddpm")
    process = DDPM()
    grid = process.uniform(steps)
    indices = {int(key.split(".")[1]) for key in vectors if key.startswith(f"respaced{steps}.") and key.count(".") == 2}
    assert len(indices) == 6
    for index in indices:
        part = {key.split(".")[2]: v for key, v in vectors.items() if key.startswith(f"respaced{steps}.{index}.")}
        i, x = steps - 1 - index, part["x_t"]
        objective = Objective(process, "eps", learn_variance=True)
        prediction = Denoiser(objective, lambda x, t, y, part=part: part["model_output"])(x, grid[i], None, Condition())
        assert relative(prediction.x0, part["pred_xstart"]) < 1e-5
        assert relative(reverse_mean(process, prediction, x, grid[i], grid[i + 1]), part["mean"]) < 1e-5
        assert relative(reverse_log_variance(process, prediction, x, grid, i), part["log_variance"]) < 1e-5
        step = next(ddim(lambda x, t, s, p=prediction: p, process, x, grid[i : i + 2], None))
        assert relative(step.x, part["ddim_eta0"]) < 1e-5


def test_integration_weights_are_those_of_adams_and_bashforth():
    weights = integration_weights(torch.tensor([0.0, -1, -2, -3]).double(), torch.tensor(0.0), torch.tensor(1.0))
    assert torch.allclose(weights, torch.tensor([55, -59, 37, -9], dtype=torch.float64) / 24)


def test_grids_fall_from_noise_to_data():
    for name in GRIDS.keys() - {"leading"}:
        for process in (Linear(), Cosine(), DDPM()):
            for steps in (1, 2, 17):
                grid = time_grid(name, process, steps)
                assert grid.shape == (steps + 1,)
                assert grid[0].item() == pytest.approx(1)
                assert grid[-1] == 0
                assert (grid.diff() < 0).all()


def test_leading_grid_is_that_of_diffusers():
    from diffusers import DDIMScheduler

    for steps in (1, 7, 50, 1000):
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(steps)
        grid = time_grid("leading", DDPM(), steps)
        assert (grid[:-1] * 1000 - 1).round().long().tolist() == scheduler.timesteps.tolist()
        assert grid[-1] == 0


def test_grid_mistakes():
    with pytest.raises(InputError, match="leading schedule needs a ddpm process"):
        time_grid("leading", Linear(), 10)
    with pytest.raises(InputError, match="0 sampling steps; give 1 or more"):
        time_grid("uniform", Linear(), 0)
    with pytest.raises(InputError, match="1001 steps on a process of 1000"):
        time_grid("uniform", DDPM(), 1001)
    with pytest.raises(InputError, match='did you mean "cosine"'):
        time_grid("cosin", Linear(), 3)


def test_noise_of_an_image_is_its_seed_alone():
    like = torch.empty(3, 1, 4, 4)
    together, alone = image_noise([7, 8, 9]), image_noise([8])
    for _ in range(3):
        assert torch.equal(together(like)[1:2], alone(like[:1]))


class TestAgainstDiffusers:
    """Step for step against the schedulers of diffusers, with the same network outputs."""

    @staticmethod
    def follow(scheduler, model, x):
        states = []
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t), t, x).prev_sample
            states.append(x)
        return states

    @staticmethod
    def compare(sampler, denoise, process, x, grid, theirs):
        ours = [step.x for step in SAMPLERS[sampler](denoise, process, x, grid, None)]
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert relative(a, b) < 1e-4

    @pytest.fixture
    def x(self):
        return torch.randn(1, 1, 16, 16)

    def test_ddim(self, x):
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
        scheduler.set_timesteps(25)
        grid = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1)])
        process = DDPM()
        denoise = mixture_denoiser(process)
        theirs = self.follow(scheduler, lambda x, t: denoise(x, (t.double() + 1) / 1000).eps, x)
        self.compare("ddim", denoise, process, x, grid, theirs)

    def test_dpm_solver(self, x):
        from diffusers import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, final_sigmas_type="zero")
        scheduler.set_timesteps(20)
        grid = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1)])
        process = DDPM()
        denoise = mixture_denoiser(process)
        theirs = self.follow(scheduler, lambda x, t: denoise(x, (t.double() + 1) / 1000).eps, x)
        self.compare("dpmpp", denoise, process, x, grid, theirs)

    def test_flow_match_euler(self, x):
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(20)
        grid = scheduler.sigmas.double()
        process = Linear()
        denoise = mixture_denoiser(process)

        def velocity(x, t):
            prediction = denoise(x, t.double() / 1000)
            return prediction.eps - prediction.x0

        self.compare("euler", denoise, process, x, grid, self.follow(scheduler, velocity, x))
