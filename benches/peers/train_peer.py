"""Trains a peer's TopK dictionary on the rows of a .npy and says how fast and how well.

Usage: train_peer.py saelens|sparsify|dictionary_learning ACTS.npy --d-sae N --k K --batch B --steps S [--lr LR] [--bf16]
                     [--held-out ROWS.npy] [--warmup-steps N] [--decay-steps N]
The last 4,096 rows are held out, and the others come in random order; with `--held-out`, those of that file are, and the
rows of ACTS.npy come as they lie, times the constant that makes the mean of |x|^2 the width, as our trainer has them.
The learning rate is constant but for a linear warm-up from 0 and a linear decay to 0, of as many steps as is said.
Prints one JSON line: seconds a step (median), FVU, L0 and dead share on the held-out rows, and the peak memory of the
process after training, also without the activations that it holds.
"""

import argparse
import json
import os
import time

import numpy as np
import torch

parser = argparse.ArgumentParser()
parser.add_argument("peer", choices=["saelens", "sparsify", "dictionary_learning"])
parser.add_argument("acts")
parser.add_argument("--d-sae", type=int, required=True)
parser.add_argument("--k", type=int, required=True)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--lr", type=float, default=3e-4)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--held-out")
parser.add_argument("--warmup-steps", type=int, default=0)
parser.add_argument("--decay-steps", type=int, default=0)
a = parser.parse_args()

torch.manual_seed(a.seed)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
if a.held_out:
    train, held_out = (np.load(path, mmap_mode="r") for path in (a.acts, a.held_out))
    sample = train[:16384].astype(np.float64)
    scale = float(np.sqrt(sample.shape[1] / np.square(sample).sum(1).mean()))
    order, loaded = np.arange(len(train)), 0
else:
    acts = np.load(a.acts).astype(np.float32, copy=False)
    train, held_out = acts[:-4096], acts[-4096:]
    scale = 1.0
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(a.seed)).numpy()
    loaded = acts.size * 4 / 2**20
d_in = train.shape[1]


def rows(where):
    return torch.from_numpy(np.asarray(train[where], dtype=np.float32)) * scale


held_out = torch.from_numpy(np.asarray(held_out, dtype=np.float32)) * scale
times = []


def batches():
    at = 0
    while True:
        if at + a.batch > len(order):
            at = 0
        yield rows(order[at : at + a.batch])
        at += a.batch


def share_of_rate(step):
    """Of the highest learning rate, what step `step`, counted from 0, has: the schedule of `sae train`."""
    up = (step + 1) / (a.warmup_steps + 1)
    down = (a.steps - step) / (a.decay_steps + 1)
    return max(0.0, min(1.0, up, down))


def train_saelens():
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=a.d_sae, k=a.k, device="cpu"))
    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=a.batch * a.steps,
        device="cpu", autocast=a.bf16, lr=a.lr, lr_end=a.lr,
        lr_scheduler_name="constant", lr_warm_up_steps=a.warmup_steps,
        adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=a.decay_steps, n_restart_cycles=1, train_batch_size_samples=a.batch,
        dead_feature_window=1000, feature_sampling_window=2000, n_batches_for_norm_estimate=1000,
        logger=LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1),
    )

    def timed():  # a step is what lies between two batches being asked for
        last = None
        for batch in batches():
            now = time.perf_counter()
            if last is not None:
                times.append(now - last)
            last = now
            yield batch

    SAETrainer(cfg=config, sae=sae, data_provider=timed()).fit()
    return sae.encode, sae.decode


def train_sparsify():
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(d_in, SparseCoderConfig(num_latents=a.d_sae, k=a.k), device="cpu")
    adam = torch.optim.Adam(coder.parameters(), lr=a.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, share_of_rate)
    coder.b_dec.data = rows(order[:4096]).mean(0)
    for _, batch in zip(range(a.steps), batches()):
        began = time.perf_counter()
        coder.set_decoder_norm_to_unit_norm()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.bf16):
            coder(batch).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        schedule.step()
        adam.zero_grad()
        times.append(time.perf_counter() - began)

    def encode(x):
        code = coder.encode(x)
        return torch.zeros(len(x), a.d_sae).scatter_(1, code.top_indices, code.top_acts.float())

    return encode, lambda f: f @ coder.W_dec + coder.b_dec


def train_dictionary_learning():
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=a.steps, activation_dim=d_in, dict_size=a.d_sae, k=a.k, layer=0, lm_name="", lr=a.lr, device="cpu",
        seed=a.seed, warmup_steps=a.warmup_steps, decay_start=a.steps - a.decay_steps if a.decay_steps else None,
    )
    for step, batch in zip(range(a.steps), batches()):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.bf16):
            trainer.update(step, batch)
        times.append(time.perf_counter() - began)
    return trainer.ae.encode, trainer.ae.decode


def peak_mb():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))


encode, decode = globals()[f"train_{a.peer}"]()
peak = peak_mb()  # before the dense evaluation below
pieces = []
with torch.no_grad():
    for piece in held_out.split(2048):
        code = encode(piece).float()
        error = (decode(code).float().double() - piece).square().sum()
        pieces.append((error, (code != 0).sum(), (code != 0).sum(0)))
error, active, fired = (sum(part) for part in zip(*pieces))
variance = (held_out.double() - held_out.double().mean(0)).square().sum()
print(json.dumps({
    "peer": a.peer, "bf16": a.bf16, "lr": a.lr, "step_s": float(np.median(times)), "fvu": float(error / variance),
    "l0": float(active / len(held_out)), "dead_share": float((fired == 0).double().mean()),
    "peak_rss_mb": peak, "peak_less_data_mb": peak - loaded,
}))
