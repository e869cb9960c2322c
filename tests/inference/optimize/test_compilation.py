import shutil

import pytest
import torch
import torch._dynamo
from helpers import relative, tiny_pipeline
from rich.console import Console

from ditlab.backbones import create
from ditlab.config.reader import parse_recipe
from ditlab.inference.optimize import compilation
from ditlab.inference.optimize.compilation import compile_blocks, is_compiled, pays
from ditlab.inference.prepare import ready
from ditlab.training import train
from ditlab.training.parallel import keep_inputs_only

OPTIONS = {"seeds": [0, 1, 2], "num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
QUIET = Console(quiet=True)


def broken(*args, **options):
    raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")


def test_work_that_is_short_is_not_compiled():
    net = tiny_pipeline().net.eval()
    assert not pays(net, torch.float32, 60)
    assert pays(net, torch.float32, 3600)
    assert not pays(net, torch.bfloat16, 600)
    assert pays(net.train(), torch.bfloat16, 600)


def test_compiling_takes_longer_the_more_kinds_of_blocks_there_are():
    udit = create("U-DiT-S", width=16, heads=2, size=16, channels=1, classes=0)
    assert not pays(udit, torch.bfloat16, 600)
    assert pays(udit, torch.bfloat16, 1800)


@pytest.mark.slow
def test_a_compiler_that_fails_leaves_the_network_as_it_was(monkeypatch):
    pipe = tiny_pipeline()
    expected = pipe([0, 1, 2], **OPTIONS).images
    calls = []

    def work():
        calls.append(is_compiled(pipe.net))
        if is_compiled(pipe.net):
            broken()

    assert compile_blocks(pipe.net, work, dynamic=True) is None
    assert calls == [True, False]
    assert torch.equal(pipe([0, 1, 2], **OPTIONS).images, expected)


def test_a_fault_of_the_work_itself_is_not_hidden():
    with pytest.raises(RuntimeError, match="no working"):
        compile_blocks(tiny_pipeline().net, broken, dynamic=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_compiled_blocks_generate_the_same_at_any_batch_size():
    pipe = tiny_pipeline()
    expected = pipe([0, 1, 2], **OPTIONS).images
    settings = {"count": 3, "batch_size": 2, "options": {}, "precision": "float32"}
    quick, _ = ready(pipe, QUIET, compile="always", **settings)
    assert is_compiled(quick.net)
    assert relative(quick([0, 1, 2], batch_size=2, **OPTIONS).images, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_a_compiled_run_resumes_exactly(tmp_path):
    def run(folder, images):
        settings = {"images": images, "batch": 16, "compile": "always", "save_every": 32, "precision": "float32"}
        model = {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}
        recipe = parse_recipe({"model": model, "data": {"source": "digits"}, "train": settings}, source="test")
        return train(recipe, folder, console=QUIET).net.state_dict()

    whole = run(tmp_path / "whole", 64)
    run(tmp_path / "parts", 32)
    parts = run(tmp_path / "parts", 64)
    assert all(torch.equal(parts[key], value) for key, value in whole.items())


@pytest.mark.slow
def test_one_network_after_another_is_compiled(monkeypatch):
    """Beyond a limit torch would run further kinds of a block as they are, and a study or a service has many."""
    graphs, plain = [], torch.nn.Module.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, dynamic: plain(block, backend=backend))
    given = torch.ones(1, 1, 8, 8), torch.ones(1), torch.zeros(1).long()
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (8, 16, 24):
            net = create("DiT-S/4", size=8, channels=1, classes=2, width=width, depth=1, heads=2).eval()
            compile_blocks(net, lambda net=net: net(*given), dynamic=False)
    assert len(graphs) == 3 * len(net.repeated)


def test_auto_compiles_long_work_only(monkeypatch):
    compiled = []
    monkeypatch.setattr(compilation, "compile_blocks", lambda net, work, dynamic: compiled.append(net))
    settings = {"batch_size": 1, "options": {"num_inference_steps": 10}, "precision": "float32", "compile": "auto"}
    ready(tiny_pipeline(), QUIET, count=10, **settings)
    assert compiled == []
    monkeypatch.setattr(compilation, "SECONDS", 0.0)
    ready(tiny_pipeline(), QUIET, count=10, **settings)
    assert len(compiled) == 1


@pytest.mark.slow
def test_compilers_see_what_is_inside_of_blocks_that_keep_their_inputs_alone():
    net = create("DiT-S/4", size=16, channels=2, classes=5, width=32, depth=2, heads=2).train()
    expected = net(torch.ones(2, 2, 16, 16), torch.ones(2), torch.zeros(2).long())
    keep_inputs_only(net)
    seen = []

    def backend(graph, inputs):
        graphs = [each for each in graph.modules() if isinstance(each, torch.fx.GraphModule)]
        seen.append(sum(len(each.graph.nodes) for each in graphs))
        return graph

    for block in net.repeated:
        block.compile(backend=backend)
    out = net(torch.ones(2, 2, 16, 16), torch.ones(2), torch.zeros(2).long())
    out.sum().backward()
    assert max(seen) > 40
    assert torch.allclose(out, expected, atol=1e-6)
