import pytest
import torch
from diffusers import DDPMScheduler

from ditlab.diffusion.process import DDPM, PROCESSES, VP, ScaledLinear, posterior

TIMES = torch.linspace(0.013, 0.987, 38, dtype=torch.float64)


@pytest.mark.parametrize("name", PROCESSES)
def test_derivatives_agree_with_differences(name):
    process, h = PROCESSES[name](), 1e-7
    t = TIMES + 1e-4  # inside the pieces of the DDPM table
    for function, derivative in ((process.alpha, process.alpha_dot), (process.sigma, process.sigma_dot)):
        difference = (function(t + h) - function(t - h)) / (2 * h)
        assert torch.allclose(derivative(t), difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PROCESSES)
def test_time_of_inverts_log_snr(name):
    process = PROCESSES[name]()
    assert torch.allclose(process.time_of(process.log_snr(TIMES)), TIMES, atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_straight_coordinates_are_the_linear_path(name):
    process = PROCESSES[name]()
    x0, eps = torch.randn(38, 1, 2, 2), torch.randn(38, 1, 2, 2)
    scale, s = (v.float().reshape(-1, 1, 1, 1) for v in process.straight(TIMES))
    assert torch.allclose(process.add_noise(x0, eps, TIMES) / scale, (1 - s) * x0 + s * eps, atol=1e-6)


def test_ddpm_table_by_hand():
    process = DDPM()
    product = 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (2e-2 - 1e-4) * i / 999)
    end = torch.tensor(1.0, dtype=torch.float64)
    assert process.alpha(end).item() ** 2 == pytest.approx(product, rel=1e-10)
    assert product == pytest.approx(4.0e-5, rel=0.02)
    assert process.clock(end).item() == 999
    assert process.snap(torch.tensor([0.0001, 0.0010001, 0.99999])).tolist() == pytest.approx([0.001, 0.002, 1.0])


def test_scaled_linear_agrees_with_diffusers():
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.allclose(ScaledLinear().alpha(times) ** 2, theirs.double(), rtol=1e-4)
    assert ScaledLinear(clock_start=1.0).clock(times).tolist() == pytest.approx(range(1, 1001))


def test_vp_integrates_its_betas_and_is_the_limit_of_ddpm():
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    integral = torch.cumulative_trapezoid(0.1 + 19.9 * t, t)
    assert torch.allclose(VP().alpha(t[1:]), torch.exp(-integral / 2), rtol=1e-9)
    assert torch.allclose(VP().log_snr(TIMES), DDPM().log_snr(TIMES), atol=0.04)
    assert VP().clock(t[-1]).item() == 999


@pytest.mark.parametrize("steps", [10, 250])
def test_respacing_agrees_with_improved_ddpm(golden, steps):
    vectors, process = golden("iddpm"), DDPM()
    grid = process.uniform(steps)
    assert process.clock(grid[:-1]).flip(0).round().long().tolist() == vectors[f"respaced{steps}.timestep_map"].tolist()
    betas = posterior(process, grid[:-1], grid[1:]).beta.flip(0)
    assert torch.allclose(betas, vectors[f"respaced{steps}.betas"], rtol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_is_bayes(name):
    """Marginalising q(x_s | x_t, x0) over q(x_t | x0) gives q(x_s | x0)."""
    process = PROCESSES[name]()
    t, s = torch.tensor(0.73, dtype=torch.float64), torch.tensor(0.41, dtype=torch.float64)
    back = posterior(process, t, s)
    mean = back.from_x * process.alpha(t) + back.from_x0
    variance = back.variance + (back.from_x * process.sigma(t)) ** 2
    assert mean.item() == pytest.approx(process.alpha(s).item(), rel=1e-12)
    assert variance.item() == pytest.approx(process.sigma(s).item() ** 2, rel=1e-12)
