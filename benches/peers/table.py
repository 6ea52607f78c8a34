"""Writes the tables of docs/performance.md from docs/performance.json, between the markers. Usage: table.py JSON MD"""

import json
import re
import sys
from pathlib import Path

results, text = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])


def cell(figure, digits):
    return f"{figure['median']:,.{digits}f} ({figure['min']:,.{digits}f} to {figure['max']:,.{digits}f})"


def beside(name, figure, digits, faster_is_larger):
    """A row a contestant, with the ratio of medians to `sae`."""
    medians = results[name]["medians"]
    ours = medians["sae"][figure]["median"]
    for who, figures in medians.items():
        theirs = figures[figure]["median"]
        ratio = ours / theirs if faster_is_larger else theirs / ours
        extra = f" {figures['fvu']['median']:.3f} |" if "fvu" in figures else ""
        yield (f"| {who} | {cell(figures[figure], digits)} | {'1' if who == 'sae' else f'{ratio:.2f}'} |"
               f" {figures['peak_rss_mb']['median']:,.0f} MB |{extra}")


def harvest():
    yield "| | tokens/s | `sae` is faster by | peak memory |"
    yield "|---|---|---|---|"
    yield from beside("harvest", "tokens_per_s", 0, True)


def train():
    yield "| | seconds a step | `sae` is faster by | peak memory | held-out FVU |"
    yield "|---|---|---|---|---|"
    yield from beside("train", "step_s", 3, False)


def machine():
    m = results["machine"]
    yield f"{m['cpu']}, {m['cores']} cores, shared with other work; PyTorch and we use two threads."


page = text.read_text()
for name in ("machine", "harvest", "train"):
    if name in results:
        table = "\n".join(globals()[name]())
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + table + "\n" + m[2], page, flags=re.S)
text.write_text(page)
