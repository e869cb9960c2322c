"""How much the outputs of the blocks change from one sampling step to the next, on which feature caching relies.

Results: `block_similarity`, the cosine similarity of the outputs of a block in consecutive evaluations, and
`block_change`, the norm of their difference divided by the norm of the earlier output; both are means over blocks,
steps and images. Chen et al., "Accelerating Vision Diffusion Transformers with Skip Branches" (ICCV 2025) compare the
similarity of networks with and without long skip connections.
"""

from collections import defaultdict
from statistics import fmean

from rich.console import Console
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ditlab.config.evaluation import Evaluation
from ditlab.inference.pipeline import Pipeline
from ditlab.study.measures.base import Measure, kept
from ditlab.study.measures.blocks import check, watch_blocks


def block_similarity(pipe: Pipeline, settings: Evaluation, console: Console) -> dict[str, float]:
    """The means over all blocks, and those of each block as `block_similarity_0` and so on."""
    last: dict[int, Tensor] = {}
    cosines: dict[int, list[float]] = defaultdict(list)
    changes: dict[int, list[float]] = defaultdict(list)

    def compare(number: int, output: Tensor) -> None:
        output = output.flatten(1)
        before = last.get(number)
        if before is not None and before.shape == output.shape:  # it differs where guidance begins
            cosines[number].append(float(cosine_similarity(output, before).mean()))
            changes[number].append(float(((output - before).norm(dim=1) / before.norm(dim=1)).mean()))
        last[number] = output

    watch_blocks(pipe, settings, compare, last.clear)
    of_block = {number: fmean(values) for number, values in sorted(cosines.items())}
    means = {"block_similarity": fmean(of_block.values()), "block_change": fmean(map(fmean, changes.values()))}
    return means | {f"block_similarity_{number}": value for number, value in of_block.items()}


SIMILARITY = Measure(
    kept("block-similarity", block_similarity), {"block_similarity": "higher", "block_change": "lower"}, check
)
