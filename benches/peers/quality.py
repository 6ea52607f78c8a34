"""Trains the same TopK dictionary with `sae` and with its peers, on the same batches in the same order, at several
learning rates, and writes the held-out FVU of each to a JSON file, below `quality`. What it has already is not made again.

Usage: quality.py --model DIR --text FILE --out docs/performance.json [--hook blocks.3.hook_resid_post] [--d-sae 4608]
                  [--k 32] [--batch 2048] [--steps 1000] [--tools sae,sparsify,saelens,dictionary_learning]

Every tool has the same schedule (a warm-up of a twentieth, a linear decay over the last fifth), Adam's defaults, its
own initialisation and its own auxiliary loss as it comes. `default` is the rate that a tool takes or recommends for so
many latents: 2e-4 / sqrt(d_sae / 2^14), but 3e-4 for SAELens.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
RATES = [2e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
HELD_OUT = 16_384

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", required=True)
parser.add_argument("--text", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--hook", default="blocks.3.hook_resid_post")
parser.add_argument("--d-sae", type=int, default=4608)
parser.add_argument("--k", type=int, default=32)
parser.add_argument("--batch", type=int, default=2048)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--tools", default="sae,sparsify,saelens,dictionary_learning")
parser.add_argument("--sae", default="target/release/sae")
parser.add_argument("--examples", default="target/release/examples")
parser.add_argument("--work", help="where activations are kept; a temporary directory unless given")
args = parser.parse_args()
work = Path(args.work or tempfile.mkdtemp(prefix="sae-quality-"))
warmup, decay = args.steps // 20, args.steps // 5


def run(*command):
    """Runs a command and returns the JSON object at the end of its output."""
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{done.stdout}")
    text = done.stdout.rstrip()
    return json.loads(text[0 if text.startswith("{") else text.rfind("\n{") + 1 :])


def ours(rate):
    out = work / "run"
    subprocess.run(["rm", "-rf", out], check=True)
    keys = {"sae.d_sae": args.d_sae, "sae.k": args.k, "train.batch": args.batch, "train.steps": args.steps,
            "train.lr": rate, "train.warmup_steps": warmup, "train.decay_share": 0.2, "data.held_out_rows": HELD_OUT,
            "train.eval_every": args.steps, "train.checkpoint_every": args.steps}
    sets = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    held_out = run(args.sae, "train", "--acts", work / "acts", "--out", out, "--json", *sets)["held_out"]
    return {key: held_out[key] for key in ("fvu", "l0", "dead_share")}


def peer(tool, rate):
    made = run(sys.executable, HERE / "train_peer.py", tool, work / "batches.npy", "--held-out", work / "held_out.npy",
               "--d-sae", args.d_sae, "--k", args.k, "--batch", args.batch, "--steps", args.steps, "--lr", rate,
               "--warmup-steps", warmup, "--decay-steps", decay)
    return {key: made[key] for key in ("fvu", "l0", "dead_share")}


tools = args.tools.split(",")
if not (work / "acts" / "manifest.json").exists():
    tokens = int((args.batch * args.steps + HELD_OUT) * 1.02)
    run(args.sae, "harvest", "--model", args.model, "--text", args.text, "--hook", args.hook, "--separator", "<|end|>",
        "--tokens", tokens, "--out", work / "acts", "--json")
if tools != ["sae"] and not (work / "held_out.npy").exists():
    subprocess.run([Path(args.examples) / "mixed_rows", work / "acts", work, "--batch", str(args.batch), "--steps",
                    str(args.steps), "--held-out", str(HELD_OUT)], check=True)

out = Path(args.out)
everything = json.loads(out.read_text()) if out.exists() else {}
quality = everything.setdefault("quality", {})
results = quality.setdefault("held_out", {})
made_with = quality.setdefault("made_with", {})
made_with |= {
    "hook": args.hook, "d_sae": args.d_sae, "k": args.k, "batch": args.batch, "steps": args.steps,
    "scripts": {name: hashlib.sha256((HERE / name).read_bytes()).hexdigest() for name in ("quality.py", "train_peer.py")},
    "packages": {p: version(p) for p in ("torch", "sae-lens", "eai-sparsify", "dictionary-learning")},
}
for tool in tools:
    default = 3e-4 if tool == "saelens" else 2e-4 / (args.d_sae / 2**14) ** 0.5
    for name, rate in [("default", default)] + [(f"{rate:g}", rate) for rate in RATES]:
        if name in results.setdefault(tool, {}):
            continue
        if tool == "sae":
            made = ours(rate)
            made_with["sae"] = hashlib.sha256(Path(args.sae).read_bytes()).hexdigest()
        else:
            made = peer(tool, rate)
        results[tool][name] = {"lr": rate, **made}
        print(f"{tool} {name} ({rate:.2e}): " + "  ".join(f"{k} {v:.5g}" for k, v in made.items()), flush=True)
        out.write_text(json.dumps(everything, indent=1) + "\n")
if not args.work:
    subprocess.run(["rm", "-rf", work], check=True)
