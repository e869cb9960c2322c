"""A model on a web page with Gradio, for example as a Space on the Hugging Face hub.

    pip install 'ditlab[hub]' gradio
    python examples/gradio_app.py runs/demo

In a Space, this file is app.py, requirements.txt names ditlab with the extra hub, and DITLAB_MODEL is a hub id.
"""

import os
import sys

import gradio

import ditlab

MODEL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("DITLAB_MODEL", "runs/demo")
pipe = ditlab.load(MODEL).prepared()


def generate(label: str | None, count: float, seed: float, steps: float, guidance: float) -> list:
    """Generate `count` images, with consecutive seeds."""
    options = {"guidance": guidance} if pipe.conditional else {}
    seeds = range(int(seed), int(seed) + int(count))
    return pipe(label, seeds=seeds, steps=int(steps), **options).images


labels = pipe.classes or [f"index:{i}" for i in range(pipe.model.net.classes)]
app = gradio.Interface(
    generate,
    [
        gradio.Dropdown(labels, value=labels[0] if labels else None, label="Class"),
        gradio.Slider(1, 16, value=8, step=1, label="Images"),
        gradio.Number(0, label="Seed", precision=0),
        gradio.Slider(1, 100, value=pipe.resolve().steps, step=1, label="Steps"),
        gradio.Slider(1, 8, value=pipe.defaults.guidance or 1, step=0.1, label="Guidance (1 disables it)"),
    ],
    gradio.Gallery(label="Generated images", columns=4),
    title=f"ditlab: {MODEL}",
)

if __name__ == "__main__":
    app.launch()
