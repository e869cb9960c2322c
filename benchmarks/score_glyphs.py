"""Score a model of the built-in letters: share read as the letter asked for, and Frechet distance beside its floor.

python benchmarks/score_glyphs.py RUN [STEPS]
"""

import sys

import torch
from rich.console import Console

import ditlab
from ditlab.evaluation.glyphs import score_glyphs
from ditlab.sampling import draw_batches

COUNT = 2600  # a hundred of each letter


def main() -> None:
    """Draw and score, with the model's own settings."""
    console = Console(stderr=True)
    pipe = ditlab.load(sys.argv[1])
    labels = [i % 26 for i in range(COUNT)]
    options = {"num_inference_steps": int(sys.argv[2])} if len(sys.argv) > 2 else {}
    pixels = draw_batches(pipe, labels, list(range(COUNT)), console, batch_size=130, options=options)
    score = score_glyphs(pixels, torch.tensor(labels))
    print(
        f"read as the letter asked for: {score.accuracy:.1%} (held-out real ones: {score.classifier_accuracy:.1%}); "
        f"fd {score.fd:.3f}, {score.fd / score.fd_floor:.2f} x the floor of {score.fd_floor:.3f}"
    )


if __name__ == "__main__":
    main()
