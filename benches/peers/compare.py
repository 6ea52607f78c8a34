"""Times whole commands of `sae` and of its peers, alternating, and writes medians and ratios to a JSON file.

Usage: compare.py --model DIR --text FILE --out docs/performance.json [--sae target/release/sae] [--rounds 3]
                  [--only harvest,memory,train,wide,large,methods,step,encode,grid,store,index]

`--harvest DIR:LAYER:TOKENS`, repeated, names several models and places to harvest at.

Every figure is the median over `--rounds` alternations, with the smallest and largest beside it: the machine may be
shared, so ratios mean more than times. Peak memory is the system's own figure for the process and its children.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--text", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--sae", default="target/release/sae")
parser.add_argument("--examples", default="target/release/examples")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--harvest", action="append", metavar="DIR:LAYER:TOKENS", help="what to harvest (repeatable)")
parser.add_argument("--tokens", type=int, default=100_000)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--only", default="harvest,memory,train,wide,large,methods,step,encode,grid,store,index")
args = parser.parse_args()
work = Path(tempfile.mkdtemp(prefix="sae-compare-"))


def run(*command):
    """Runs a command; returns the last line of its output, read as JSON, and its peak memory in MB."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.execvpe(str(command[0]), [str(c) for c in command], {**os.environ, "RAYON_NUM_THREADS": "2"})
    os.close(write)
    with os.fdopen(read) as out:
        text = out.read()
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{text}")
    start = text.find("{\n") if text.lstrip().startswith("{") else text.rfind("\n{") + 1
    return json.loads(text[max(start, 0):]), usage.ru_maxrss / 1024


def alternate(contestants):
    """{name: a function that returns a dict of figures} -> {name: {figure: {median, min, max}}}"""
    seen = {name: [] for name in contestants}
    for number in range(args.rounds):
        for name, contestant in contestants.items():
            figures = contestant()
            print(f"round {number + 1}  {name}: " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items()), flush=True)
            seen[name].append(figures)
    return {
        name: {k: dict(median=median(r[k] for r in runs), min=min(r[k] for r in runs), max=max(r[k] for r in runs))
               for k in runs[0]}
        for name, runs in seen.items()
    }


def harvest():
    """{"MODEL, blocks.LAYER": the contestants' medians} for every --harvest."""
    return {f"{Path(model).name}, block {layer}": harvest_at(model, int(layer), int(tokens))
            for model, layer, tokens in (spec.rsplit(":", 2) for spec in args.harvest or [f"{args.model}:3:{args.tokens}"])}


def harvest_at(model, layer, tokens):
    def ours(precision):
        def contestant():
            out = work / "acts"
            subprocess.run(["rm", "-rf", out], check=True)
            made, peak = run(args.sae, "harvest", "--model", model, "--text", args.text, "--hook",
                             f"blocks.{layer}.hook_resid_post", "--context", 256, "--tokens", tokens, "--precision",
                             precision, "--out", out, "--json")
            return {"tokens_per_s": made["tokens"] / made["seconds"], "peak_rss_mb": peak}
        return contestant

    def transformers(dtype):
        def contestant():
            made, peak = run(sys.executable, HERE / "harvest_peer.py", model, args.text, layer, tokens, dtype)
            return {"tokens_per_s": made["tok_s"], "peak_rss_mb": peak}
        return contestant

    return alternate({"sae f32": ours("f32"), "sae bf16": ours("bf16"), "transformers f32": transformers("float32"),
                      "transformers bf16": transformers("bfloat16")})


def train():
    return train_at([768, 16384, 32, 4096], 65536, args.steps, {
        "sparsify": ["sparsify"], "sparsify bf16": ["sparsify", "--bf16"], "saelens": ["saelens"],
    })


def wide():
    return train_at([2304, 65536, 64, 2048], 20480, 4, {"sparsify": ["sparsify"]})


def large():
    """A dictionary whose weights and moments take 2.4 GB, with the checkpoint that a run ends with."""
    return train_at([768, 131072, 32, 4096], 65536, args.steps, {})


def train_at(shape, rows, steps, peers):
    d_in, d_sae, k, batch = shape
    acts = work / "acts.npy"
    subprocess.run([sys.executable, HERE / "make_acts.py", acts, str(d_in), "16384", str(rows)], check=True)

    def ours():
        out = work / "run"
        subprocess.run(["rm", "-rf", out], check=True)
        made, peak = run(args.sae, "train", "--acts", acts, "--out", out, "--json", "--set", f"sae.d_sae={d_sae}",
                         "--set", f"sae.k={k}", "--set", f"train.batch={batch}", "--set", f"train.steps={steps}",
                         "--set", "data.held_out_rows=4096", "--set", "train.warmup_steps=0", "--set", "train.lr=3e-4",
                         "--set", "train.log_every=1", "--set", f"train.eval_every={steps}",
                         # The peers train without an auxiliary loss here; so do we, as nothing is dead so early.
                         "--set", "train.dead_after_tokens=10000000",
                         # By default a run so short would write a checkpoint behind every step.
                         "--set", f"train.checkpoint_every={steps}")
        seconds = [json.loads(line)["seconds"] for line in open(out / "timings.jsonl")]
        # The last also has the measurement on the held-out rows in it.
        step = median(b - a for a, b in zip(seconds[:-2], seconds[1:-1]))
        subprocess.run(["rm", "-rf", out], check=True)
        return {"step_s": step, "tokens_per_s": batch / step, "fvu": made["held_out"]["fvu"], "peak_rss_mb": peak}

    def peer(*flags):
        def contestant():
            made, peak = run(sys.executable, HERE / "train_peer.py", flags[0], acts, "--d-sae", d_sae, "--k", k, "--batch",
                             batch, "--steps", steps, *flags[1:])
            return {"step_s": made["step_s"], "tokens_per_s": batch / made["step_s"], "fvu": made["fvu"],
                    "peak_rss_mb": made["peak_rss_mb"]}
        return contestant

    made = alternate({"sae": ours, **{name: peer(*flags) for name, flags in peers.items()}})
    acts.unlink()
    return made


def methods():
    """Steps of other methods beside those of TopK, on average: a term that is there every fifth step costs a fifth."""
    def of(method, *sets):
        def contestant():
            made, _ = run(args.sae, "bench", "speed", "step", "--method", method, "--steps", 10, "--json",
                          *(part for key in sets for part in ("--set", key)))
            return {"step_s": made["step_s"], "step_mean_s": made["step_mean_s"]}
        return contestant

    return alternate({
        "topk": of("topk"), "abs_topk": of("abs_topk"), "batch_topk": of("batch_topk"),
        "hierarchical": of("topk", "objective.hierarchical.weight=1"),
        "topk, orthogonality every fifth step": of("topk", "objective.orthogonality.every=5"),
    })


def encode():
    """Codes of whole batches beside PyTorch's product alone, in f32, of a batch with the encoder."""
    def ours():
        made, _ = run(args.sae, "bench", "speed", "encode", "--steps", args.steps, "--json")
        return {"batch_s": made["encode_s"]}

    def product():
        made, _ = run(sys.executable, HERE / "product_peer.py", 4096, 768, 16384, "float32")
        return {"batch_s": 2e-9 * 4096 * 768 * 16384 / made["gflops"]}

    return alternate({"sae": ours, "PyTorch's product in f32": product})


def grid():
    """Eight dictionaries trained on a text, by eight runs that each read it through the model, and by one that does so once."""
    rates = [f"{rate:g}" for rate in (1e-4, 2e-4, 4e-4, 8e-4, 1e-3, 2e-3, 4e-3, 8e-3)]

    def trained(value):
        out = work / "runs"
        subprocess.run(["rm", "-rf", out], check=True)
        began = time.perf_counter()
        _, peak = run(args.sae, "train", "--model", args.model, "--text", args.text, "--out", out, "--json", "--set",
                      'data.hook="blocks.3.hook_resid_post"', "--set", "sae.d_sae=2048", "--set", "sae.k=16", "--set",
                      "train.batch=2048", "--set", "train.steps=60", "--set", f"train.lr={value}", "--set",
                      "train.checkpoint_every=60", "--set", "train.eval_every=60", "--set", "data.held_out_rows=4096")
        return {"seconds": time.perf_counter() - began, "peak_rss_mb": peak}

    def one_by_one():
        runs = [trained(rate) for rate in rates]
        return {"seconds": sum(r["seconds"] for r in runs), "peak_rss_mb": max(r["peak_rss_mb"] for r in runs)}

    return alternate({"one grid": lambda: trained(f"[{', '.join(rates)}]"), "eight runs": one_by_one})


def example(name, *flags):
    def contestant():
        made, peak = run(Path(args.examples) / name, *flags)
        numbers = {k: v for k, v in made.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        return {**numbers, "peak_rss_mb": peak}
    return contestant


def step():
    """A step beside what it takes at least: by the rate of our own product at its shape, and by PyTorch's in bf16."""
    d_in, d_sae, k, batch = 768, 16384, 32, 4096

    def bench(*flags):
        made, _ = run(args.sae, "bench", "speed", "step", "--method", "topk", "--d-in", d_in, "--d-sae", d_sae, "--k", k,
                      "--batch", batch, "--steps", args.steps, "--json", *flags)
        figures = ("step_s", "tokens_per_s", "peak_rss_mb", "bound_s", "share_of_bound")
        bound = ("product_gflops", "copy_gb_s")
        return {**{key: made[key] for key in figures}, **{key: made["bound"][key] for key in bound}}

    def against_theirs():
        made, _ = run(sys.executable, HERE / "product_peer.py", batch, d_in, d_sae)
        return bench("--product-gflops", made["gflops"])

    return alternate({"our product": bench, "PyTorch's product in bf16": against_theirs})


def memory():
    """Peak memory of harvests of one and of ten million tokens, of a text that is repeated until it has so many."""
    text, out = work / "long.txt", work / "acts"
    with open(text, "wb") as long:
        while long.tell() < 60_000_000:
            long.write(Path(args.text).read_bytes())

    def contestant(tokens):
        def harvests():
            subprocess.run(["rm", "-rf", out], check=True)
            made, peak = run(args.sae, "harvest", "--model", args.model, "--text", text, "--hook",
                             "blocks.0.hook_resid_post", "--context", 256, "--tokens", tokens, "--out", out, "--json")
            return {"tokens": made["tokens"], "seconds": made["seconds"], "peak_rss_mb": peak}
        return harvests

    made = alternate({"1 M tokens": contestant("1M"), "10 M tokens": contestant("10M")})
    subprocess.run(["rm", "-rf", out, text], check=True)
    return made


def store():
    def contestant():
        made, peak = run(args.sae, "bench", "speed", "store", "--json")
        rates = {}
        for line in made["stores"]:
            dtype, pool = line["dtype"], line["memory_bytes"] >> 20
            rates[f"{dtype}, write GB/s"] = line["write_gb_s"]
            rates[f"{dtype}, sequential read GB/s"] = line["read_gb_s"]
            rates[f"{dtype}, mixed read GB/s, pool of {pool} MiB"] = line["mixed_gb_s"]
        return {**rates, "peak memory MB": peak}

    return alternate({"store_bench": contestant})


def index():
    return alternate({"index_bench": example("index_bench", "--tokens", 1_000_000, "--d-in", 288, "--d-sae", 4096,
                                              "--k", 32)})


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def version_of(package):
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu():
    try:
        return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


out = Path(args.out)
results = json.loads(out.read_text()) if out.exists() else {}
results["machine"] = {"cpu": cpu(), "cores": os.cpu_count(), "system": platform.platform()}
for name in args.only.split(","):
    print(f"== {name}", flush=True)
    results[name] = {
        "made_with": {
            "sae": sha256(args.sae), "scripts": {p.name: sha256(p) for p in sorted(HERE.glob("*.py"))},
            "packages": {p: version_of(p) for p in
                         ("torch", "transformers", "sae-lens", "eai-sparsify")},
            "rounds": args.rounds, "steps": args.steps, "tokens": args.tokens, "cpu": cpu(),
        },
        "medians": globals()[name](),
    }
    out.write_text(json.dumps(results, indent=1) + "\n")
subprocess.run(["rm", "-rf", work], check=True)
