"""The reports of a study: a self-contained HTML page, and the same tables in Markdown."""

import base64
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from ditlab.core.io import replace_text
from ditlab.core.units import duration
from ditlab.core.version import __version__
from ditlab.evaluation.protocols import default_features
from ditlab.report.html import page
from ditlab.study.claims import FAILS, HOLDS, NO_RESULTS, NOT_SIGNIFICANT, ONE_SEED, PERCENT, Entry, Verdict
from ditlab.study.grid import magnitude
from ditlab.study.plots import Figure, write_figures
from ditlab.study.recipe import METRICS
from ditlab.study.run import NAME, Findings, as_json

REPORT, SUMMARY, PLOTS = "report.html", "summary.md", "plots"
WIDEST = 720  # pixels of a contact sheet in the page
CLASSES = {HOLDS: "yes", FAILS: "no", NOT_SIGNIFICANT: "open", ONE_SEED: "open", NO_RESULTS: "open"}
PROCESSOR_TIME = "Times are processor time of all threads. "
Row = tuple[str, ...]
COSTS: dict[str, Callable[[Entry], str]] = {
    "forward pass": lambda entry: magnitude(entry.axes["gmacs"]),
    "parameters": lambda entry: f"{entry.axes['parameters'] / 1e6:,.2f} M",
    "training images": lambda entry: f"{entry.axes['images']:,.0f}",
    "training time": lambda entry: duration(seconds) if (seconds := entry.mean("seconds")) else "",
    "steps": lambda entry: f"{entry.axes['steps']:g}",
    "guidance": lambda entry: f"{entry.axes['guidance']:g}",
    "sampling one image": lambda entry: magnitude(entry.axes["sampling_gmacs"]),
}
"""Columns beside the results; a column is shown if the entries differ in it."""


def write_reports(findings: Findings, out: Path) -> Path:
    """Write study.json, report.html, summary.md and plots/; returns the path of the page."""
    figures = write_figures(findings, out / PLOTS)
    content = as_json(findings)
    content["fits"] = {figure.name: vars(figure.line) for figure in figures if figure.line is not None}
    replace_text(out / NAME, json.dumps(content, indent=2) + "\n")
    replace_text(out / SUMMARY, "\n".join(markdown(findings, figures)) + "\n")
    title = findings.study.title or findings.study.name
    replace_text(out / REPORT, page(title, "\n".join(body(findings, figures, title)), STYLE))
    return out / REPORT


def results_table(findings: Findings) -> list[Row]:
    """A heading, and one row per entry: each result as mean ± standard error, and the costs that differ."""
    keys = [key for key in METRICS if any(entry.values.get(key) for entry in findings.entries)]
    costs = [name for name in COSTS if len(cost_values(name, findings)) > 1]
    heading = ("", *(key.replace("_", " ") for key in keys), *costs)
    return [heading, *(row(entry, keys, costs, findings) for entry in findings.entries)]


def cost_values(cost: str, findings: Findings) -> set[str]:
    """The different values of a column."""
    return {COSTS[cost](entry) for entry in findings.entries}


def row(entry: Entry, keys: Sequence[str], costs: Sequence[str], findings: Findings) -> Row:
    """The row of an entry; in the place of a missing result, "failed" or a dash."""
    missing = "failed" if any(run.startswith(f"{entry.part}, seed ") for run in findings.failures) else "—"
    numbers = [number(entry, key, len(findings.study.seeds)) or missing for key in keys]
    return (entry.name, *numbers, *(COSTS[name](entry) for name in costs))


def number(entry: Entry, key: str, seeds: int) -> str:
    """Mean ± standard error, and the number of seeds if some are missing."""
    mean, error = entry.mean(key), entry.error(key)
    if mean is None:
        return ""
    available = len(entry.values[key])
    text = f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"
    return text if available == seeds else f"{text} ({available} of {seeds} seeds)"


def conditions(findings: Findings) -> str:
    """The conditions under which the results were measured, in a few sentences."""
    study, hardware = findings.study, findings.hardware
    seeds = f"Training seed{'s' * (len(study.seeds) > 1)} {', '.join(map(str, study.seeds))}"
    settings = [evaluation.settings for part in findings.parts for evaluation in part.evaluations.values()]
    counts = sorted({study.sample_sets * evaluation.count for evaluation in settings})
    compared = [evaluation for evaluation in settings if evaluation.reference]  # others measure the model itself
    references = sorted({evaluation.reference for evaluation in compared})
    features = sorted({evaluation.features or default_features(evaluation.reference) for evaluation in compared})
    same = [
        f"{name} {values.pop()}"
        for name in COSTS
        if name != "training time" and len(values := cost_values(name, findings)) == 1
    ]
    against = f", compared with {' or '.join(references)} in the features {' or '.join(features)}" if compared else ""
    on_cpu = any(part.recipe.train.clock == "cpu" for part in findings.parts)
    return (
        f"Budget of each run: {study.budget}. Equal in all entries: {', '.join(same)}. {seeds}; "
        f"{' or '.join(f'{count:,}' for count in counts)} samples per score{against}; "
        f"± is the standard error over the seeds. {PROCESSOR_TIME * on_cpu}"
        f"Measured with ditlab {__version__} and torch {hardware['torch']} on "
        f"{hardware['processor'] or hardware['device']}. {' '.join(f'{note}.' for note in findings.notes)}"
    ).strip()


def evidence(verdict: Verdict) -> list[str]:
    """The comparisons of a claim, one line each, and its note."""
    return [*(str(comparison) for comparison in verdict.comparisons), *([verdict.note] if verdict.note else [])]


def body(findings: Findings, figures: Sequence[Figure], title: str) -> Iterator[str]:
    """The body of the page, in parts."""
    study = findings.study
    yield f"<h1>{html.escape(title)}</h1><p>{html.escape(study.question)}</p>"
    if findings.verdicts:
        yield "<h2>Claims</h2>"
        yield from map(claim_card, findings.verdicts)
        yield (
            f"<p class='small'>A claim holds if the {PERCENT} confidence interval of each difference or correlation "
            "(Student's t, paired by seed) lies on the claimed side of 0.</p>"
        )
    yield "<h2>Results</h2>" + html_table(results_table(findings))
    yield f"<p class='small'>{html.escape(conditions(findings))}</p>"
    if findings.failures:
        yield "<h2>Failed</h2>" + html_table([("run", "error"), *findings.failures.items()])
    yield "<div class='plots'>"
    for figure in figures:
        below = f"<p class='small'>{html.escape(figure.fitted)}</p>" if figure.fitted else ""
        yield f"<figure><figcaption>{html.escape(figure.title)}</figcaption>{figure.svg}{below}</figure>"
    yield "</div>"
    if findings.grids:
        yield "<h2>Samples</h2><p class='small'>The initial noise and the labels are the same in all sheets.</p>"
        yield "<div class='grids'>"
        for name, file in findings.grids.items():
            if file.exists():
                with Image.open(file) as sheet:
                    yield f"<figure><figcaption>{html.escape(name)}</figcaption>{inline(sheet, name)}</figure>"
        yield "</div>"
    yield f"<details><summary>recipe</summary><pre>{html.escape(study.text)}</pre></details>"


def claim_card(verdict: Verdict) -> str:
    """A claim with the published result, the result here, and the verdict."""
    claim = verdict.claim
    here = "<br>".join(html.escape(line) for line in evidence(verdict))
    return (
        f"<section class='claim {CLASSES[verdict.verdict]}'><h3>{html.escape(claim.says)}</h3>"
        f"<p class='verdict'>{html.escape(verdict.verdict)}</p>"
        f"<dl><dt>paper</dt><dd>{html.escape(claim.paper) or '—'}</dd><dt>here</dt><dd>{here}</dd></dl></section>"
    )


def html_table(rows: Sequence[Row]) -> str:
    """A table that scrolls if it is too wide."""
    heading, *body_rows = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in tagged(rows))
    lines = "".join(f"<tr>{cells}</tr>" for cells in body_rows)
    return f"<div class='wide'><table><thead><tr>{heading}</tr></thead><tbody>{lines}</tbody></table></div>"


def tagged(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """Rows with the tag of their cells: th in the heading, td below."""
    return ((("td" if number else "th"), row) for number, row in enumerate(rows))


def inline(sheet: Image.Image, name: str) -> str:
    """An image as a part of the page, reduced to the width at which it is shown."""
    image = sheet.convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    text = base64.b64encode(data.getvalue()).decode()
    return f"<img alt='samples of {html.escape(name, quote=True)}' src='data:image/png;base64,{text}'>"


def markdown(findings: Findings, figures: Sequence[Figure]) -> Iterator[str]:
    """The same tables in Markdown, for a file beside plots/."""
    study = findings.study
    yield f"# {study.title or study.name}\n\n{study.question}\n"
    if findings.verdicts:
        yield from markdown_table([("claim", "paper", "here", "verdict"), *claims_table(findings.verdicts)])
        yield ""
    yield from markdown_table(results_table(findings))
    yield f"\n{conditions(findings)}"
    for run, message in findings.failures.items():
        yield f"\nFailed: {run}: {message}"
    for figure in figures:
        yield f"\n![{figure.title}]({PLOTS}/{figure.name}.png)" + (f"\n\n*{figure.fitted}*" if figure.fitted else "")


def claims_table(verdicts: Sequence[Verdict]) -> list[Row]:
    """One row per claim."""
    return [(v.claim.says, v.claim.paper, "; ".join(evidence(v)), f"**{v.verdict}**") for v in verdicts]


def markdown_table(rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table; the first row is the heading."""
    for number, cells in enumerate(rows):
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
        if number == 0:
            yield f"|{'---|' * len(cells)}"


STYLE = """
body { max-width: 72rem; }
h2 { margin-top: 2.5rem; }
.small { font-size: 0.9rem; opacity: 0.8; }
.wide { overflow-x: auto; }
.wide table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide th, .wide td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: right; white-space: nowrap; }
.wide th:first-child, .wide td:first-child { text-align: left; }
.wide tr { border-bottom: 1px solid color-mix(in srgb, currentColor 18%, transparent); }
.claim { border-left: 4px solid; padding: 0.1rem 1rem; margin: 1.2rem 0; }
.claim h3 { margin: 0.2rem 0; font-size: 1.05rem; }
.claim dl { display: grid; grid-template-columns: auto 1fr; gap: 0.2rem 1rem; margin: 0.4rem 0; }
.claim dt { opacity: 0.7; }
.claim dd { margin: 0; overflow-wrap: anywhere; }
.verdict { font-weight: 600; margin: 0.2rem 0; }
.yes { border-color: light-dark(#1d7f4e, #4cc38a); } .yes .verdict { color: light-dark(#1d7f4e, #4cc38a); }
.no { border-color: light-dark(#b3261e, #ff8a80); } .no .verdict { color: light-dark(#b3261e, #ff8a80); }
.open { border-color: light-dark(#8a6100, #e0b040); } .open .verdict { color: light-dark(#8a6100, #e0b040); }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 2rem; }
.grids figure { margin: 0; }
"""
