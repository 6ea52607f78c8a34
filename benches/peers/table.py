"""Writes the tables of docs/performance.md from docs/performance.json, between the markers. Usage: table.py JSON MD"""

import json
import re
import sys
from pathlib import Path

results, text = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])


def cell(figure, digits):
    return f"{figure['median']:,.{digits}f} ({figure['min']:,.{digits}f} to {figure['max']:,.{digits}f})"


def beside(medians, figure, digits):
    """A row a contestant, with the ratio of its median to that of `sae`."""
    ours = medians["sae"][figure]["median"]
    for who, figures in medians.items():
        theirs = figures[figure]["median"]
        ratio = theirs / ours
        extra = f" {figures['fvu']['median']:.3f} |" if "fvu" in figures else ""
        yield (f"| {who} | {cell(figures[figure], digits)} | {'1' if who == 'sae' else f'{ratio:.2f}'} |"
               f" {figures['peak_rss_mb']['median']:,.0f} MB |{extra}")


def harvest():
    yield "| | | tokens/s | `sae` is faster by | `sae` bf16 is faster by | peak memory |"
    yield "|---|---|---|---|---|---|"
    for place, medians in results["harvest"]["medians"].items():
        for who, figures in medians.items():
            rate = figures["tokens_per_s"]
            faster = [medians[ours]["tokens_per_s"]["median"] / rate["median"] for ours in ("sae f32", "sae bf16")]
            yield (f"| {place} | {who} | {cell(rate, 0)} | {faster[0]:.2f} | {faster[1]:.2f} |"
                   f" {figures['peak_rss_mb']['median']:,.0f} MB |")
            place = ""


def memory():
    yield "| tokens | seconds | peak memory |"
    yield "|---|---|---|"
    for figures in results["memory"]["medians"].values():
        yield (f"| {figures['tokens']['median']:,.0f} | {cell(figures['seconds'], 0)} |"
               f" {cell(figures['peak_rss_mb'], 0)} MB |")


def trained(name):
    yield "| | seconds a step | `sae` is faster by | peak memory | held-out FVU |"
    yield "|---|---|---|---|---|"
    yield from beside(results[name]["medians"], "step_s", 3)


def train():
    return trained("train")


def wide():
    return trained("wide")


def large():
    figures = results["large"]["medians"]["sae"]
    yield "| seconds a step | tokens/s | peak memory, the checkpoint included |"
    yield "|---|---|---|"
    yield f"| {cell(figures['step_s'], 3)} | {cell(figures['tokens_per_s'], 0)} | {cell(figures['peak_rss_mb'], 0)} MB |"


def methods():
    medians = results["methods"]["medians"]
    yield "| | a step | on average | times TopK's |"
    yield "|---|---|---|---|"
    for who, figures in medians.items():
        times = figures["step_mean_s"]["median"] / medians["topk"]["step_mean_s"]["median"]
        yield f"| {who} | {cell(figures['step_s'], 3)} | {cell(figures['step_mean_s'], 3)} | {times:.2f} |"


def encode():
    medians = results["encode"]["medians"]
    yield "| | seconds | `sae` is faster by |"
    yield "|---|---|---|"
    for who, figures in medians.items():
        times = figures["batch_s"]["median"] / medians["sae"]["batch_s"]["median"]
        yield f"| {who} | {cell(figures['batch_s'], 3)} | {'1' if who == 'sae' else f'{times:.2f}'} |"


def grid():
    medians = results["grid"]["medians"]
    yield "| | seconds | peak memory |"
    yield "|---|---|---|"
    for who, figures in medians.items():
        yield f"| {who} | {cell(figures['seconds'], 1)} | {cell(figures['peak_rss_mb'], 0)} MB |"


def step():
    yield "| the product's rate is that of | GFLOP/s | a step | at least | share of that |"
    yield "|---|---|---|---|---|"
    for who, figures in results["step"]["medians"].items():
        yield (f"| {who} | {cell(figures['product_gflops'], 0)} | {cell(figures['step_s'], 3)} |"
               f" {cell(figures['bound_s'], 3)} | {figures['share_of_bound']['median']:.0%} |")


def quality():
    yield "| | at its default rate | at the best of six | that rate | dead latents there | FVU at the other rates |"
    yield "|---|---|---|---|---|---|"
    for tool, runs in results["quality"]["held_out"].items():
        rates = {name: run for name, run in runs.items() if name != "default"}
        if len(rates) < 6:
            continue  # not all of them were run yet
        best = min(rates, key=lambda name: rates[name]["fvu"])
        others = ", ".join(f"{name}: {run['fvu']:.4f}" for name, run in rates.items() if name != best)
        yield (f"| {tool} | {runs['default']['fvu']:.4f} ({runs['default']['lr']:.2g}) | {rates[best]['fvu']:.4f} | {best} |"
               f" {rates[best]['dead_share']:.1%} | {others} |")


def store():
    figures = results["store"]["medians"]["store_bench"]
    yield "| | write | sequential read | mixed read | peak memory of the whole |"
    yield "|---|---|---|---|---|"
    for dtype in ("f16", "f32", "int8"):
        rates = {name: figure for name, figure in figures.items() if name.startswith(f"{dtype}, ")}
        if not rates:
            continue
        mixed = "; ".join(f"{cell(figure, 2)}, {name.split(', ')[2]}" for name, figure in rates.items() if "mixed" in name)
        yield (f"| {dtype} | {cell(rates[f'{dtype}, write GB/s'], 2)} | {cell(rates[f'{dtype}, sequential read GB/s'], 2)} |"
               f" {mixed} | {figures['peak memory MB']['median']:,.0f} MB |")


def index():
    figures = results["index"]["medians"]["index_bench"]
    yield "| seconds | tokens/s | peak memory |"
    yield "|---|---|---|"
    yield (f"| {cell(figures['seconds'], 1)} | {1e6 / figures['seconds']['median']:,.0f} |"
           f" {figures['peak_rss_mb']['median']:,.0f} MB |")


def machine():
    m = results["machine"]
    yield f"{m['cpu']}, {m['cores']} cores, shared with other work; PyTorch and we use two threads."


page = text.read_text()
for name in ("machine", "harvest", "memory", "train", "wide", "large", "methods", "step", "encode", "grid", "quality", "store", "index"):
    if name in results:
        table = "\n".join(globals()[name]())
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: m[1] + table + "\n" + m[2], page, flags=re.S)
text.write_text(page)
