"""Score models of the built-in letters: share classified correctly, Frechet distance, and time per image.

All models run in turns for the times.

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

COUNT = 2600  # 100 of each letter
BATCH, ROUNDS = 130, 5


def main() -> None:
    """Generate and score letters, with the default sampling settings of each model."""
    console = Console(stderr=True)
    keep_freed_memory()
    pipes = {run: ditlab.load(run) for run in sys.argv[1:]}
    labels = [i % 26 for i in range(COUNT)]
    for run, pipe in pipes.items():
        pixels = generate_images(pipe, labels, list(range(COUNT)), console, batch_size=BATCH, options={})
        score = score_glyphs(pixels, torch.tensor(labels))
        print(
            f"{run}: classified correctly: {100 * score.accuracy:.1f} % (classifier accuracy on held-out real letters: "
            f"{100 * score.classifier_accuracy:.1f} %); FD {score.fd:.3f}, {score.fd / score.fd_floor:.2f}x the "
            f"real-vs-real FD of {score.fd_floor:.3f}",
            flush=True,
        )
    few = {"seeds": range(BATCH), "batch_size": BATCH, "output_type": "latent"}
    seconds = interleaved({run: partial(pipe, labels[:BATCH], **few) for run, pipe in pipes.items()}, ROUNDS)
    for run, time in seconds.items():
        print(
            f"{run}: {time / BATCH * 1e3:.1f} ms per image, {seconds[sys.argv[1]] / time:.2f}x the speed of the first"
        )


if __name__ == "__main__":
    main()
