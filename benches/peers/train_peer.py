"""Trains a peer's TopK dictionary on the rows of a .npy and says how fast and how well.

Usage: train_peer.py saelens|sparsify ACTS.npy --d-sae N --k K --batch B --steps S [--lr LR] [--bf16]
The last 4,096 rows are held out. Prints one JSON line: seconds a step (median), FVU, L0 and dead share on the held-out
rows, and the peak memory of the process after training, also without the activations that it holds.
"""

import argparse
import json
import time

import numpy as np
import torch

parser = argparse.ArgumentParser()
parser.add_argument("peer", choices=["saelens", "sparsify"])
parser.add_argument("acts")
parser.add_argument("--d-sae", type=int, required=True)
parser.add_argument("--k", type=int, required=True)
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--steps", type=int, required=True)
parser.add_argument("--lr", type=float, default=3e-4)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--seed", type=int, default=0)
a = parser.parse_args()

torch.manual_seed(a.seed)
torch.set_num_threads(2)
acts = torch.from_numpy(np.load(a.acts).astype(np.float32, copy=False))
held_out, train = acts[-4096:], acts[:-4096]
d_in = acts.shape[1]
order = torch.randperm(len(train), generator=torch.Generator().manual_seed(a.seed))
times = []


def batches():
    at = 0
    while True:
        if at + a.batch > len(order):
            at = 0
        yield train[order[at : at + a.batch]]
        at += a.batch


def train_saelens():
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=a.d_sae, k=a.k, device="cpu"))
    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=a.batch * a.steps,
        device="cpu", autocast=a.bf16, lr=a.lr, lr_end=a.lr, lr_scheduler_name="constant", lr_warm_up_steps=0,
        adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=a.batch,
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
    coder.b_dec.data = train[order[:4096]].mean(0)
    for _, batch in zip(range(a.steps), batches()):
        began = time.perf_counter()
        coder.set_decoder_norm_to_unit_norm()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=a.bf16):
            coder(batch).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        times.append(time.perf_counter() - began)

    def encode(x):
        code = coder.encode(x)
        return torch.zeros(len(x), a.d_sae).scatter_(1, code.top_indices, code.top_acts.float())

    return encode, lambda f: f @ coder.W_dec + coder.b_dec


def peak_mb():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))


encode, decode = {"saelens": train_saelens, "sparsify": train_sparsify}[a.peer]()
peak = peak_mb()  # before the dense evaluation below
with torch.no_grad():
    code = encode(held_out).float()
    recon = decode(code).float()
error = (recon.double() - held_out).square().sum()
variance = (held_out.double() - held_out.double().mean(0)).square().sum()
print(json.dumps({
    "peer": a.peer, "bf16": a.bf16, "step_s": float(np.median(times)), "fvu": float(error / variance),
    "l0": float((code != 0).sum(1).double().mean()), "dead_share": float((code == 0).all(0).double().mean()),
    "peak_rss_mb": peak, "peak_less_data_mb": peak - acts.numel() * 4 / 2**20,
}))
