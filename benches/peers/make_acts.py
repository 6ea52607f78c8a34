"""Seeded sparse synthetic activations: 24 of F unit directions a row, Zipf frequencies, exponential magnitudes + 0.5,
noise 0.05. Usage: make_acts.py OUT.npy D F ROWS [SEED]"""

import sys

import numpy as np

out, d, f, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rng = np.random.default_rng(int(sys.argv[5]) if len(sys.argv) > 5 else 0)
directions = rng.standard_normal((f, d)).astype(np.float32)
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
p = 1 / (np.arange(f) + 50.0)
p /= p.sum()
acts = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=(n, d))
for start in range(0, n, 4096):
    rows = min(4096, n - start)
    which = rng.choice(f, (rows, 24), p=p)
    size = rng.exponential(1.0, (rows, 24)).astype(np.float32) + 0.5
    x = 0.05 * rng.standard_normal((rows, d)).astype(np.float32)
    for j in range(24):
        x += size[:, j : j + 1] * directions[which[:, j]]
    acts[start : start + rows] = x
acts.flush()
