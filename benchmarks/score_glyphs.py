"""Score models of the built-in letters: share read as the letter asked for, Frechet distance beside its floor, and the
time of a picture, all models in turns.

    python benchmarks/score_glyphs.py RUN...
"""

import sys
from functools import partial

import torch
from rich.console import Console

import ditlab
from ditlab.core.device import keep_freed_memory
from ditlab.evaluation.glyphs import score_glyphs
from ditlab.inference.folder import generate_images
from ditlab.inference.optimize.timing import interleaved

COUNT = 2600  # a hundred of each letter
BATCH, ROUNDS = 130, 5


def main() -> None:
    """Draw and score, with each model's own settings."""
    console = Console(stderr=True)
    keep_freed_memory()
    pipes = {run: ditlab.load(run) for run in sys.argv[1:]}
    labels = [i % 26 for i in range(COUNT)]
    for run, pipe in pipes.items():
        pixels = generate_images(pipe, labels, list(range(COUNT)), console, batch_size=BATCH, options={})
        score = score_glyphs(pixels, torch.tensor(labels))
        print(
            f"{run}: read as the letter asked for: {score.accuracy:.1%} (held-out real ones: "
            f"{score.classifier_accuracy:.1%}); fd {score.fd:.3f}, {score.fd / score.fd_floor:.2f} x the floor of "
            f"{score.fd_floor:.3f}",
            flush=True,
        )
    few = {"seeds": range(BATCH), "batch_size": BATCH, "output_type": "latent"}
    seconds = interleaved({run: partial(pipe, labels[:BATCH], **few) for run, pipe in pipes.items()}, ROUNDS)
    for run, each in seconds.items():
        print(f"{run}: {each / BATCH * 1e3:.1f} ms a picture, {seconds[sys.argv[1]] / each:.2f} x the first")


if __name__ == "__main__":
    main()
