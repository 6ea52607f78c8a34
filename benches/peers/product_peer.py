"""Times PyTorch's product of an encoder's shape, [BATCH, D_IN] x [D_IN, D_SAE], on two threads or OMP_NUM_THREADS.

Usage: product_peer.py BATCH D_IN D_SAE [bfloat16|float32]. Prints one JSON line: the median of nine, behind two that warm up, in GFLOP/s.
`sae bench speed step --product-gflops` takes it in the place of the rate of our own product.
"""

import json
import os
import sys
import time
from statistics import median

import torch

batch, d_in, d_sae = map(int, sys.argv[1:4])
dtype = getattr(torch, sys.argv[4] if len(sys.argv) > 4 else "bfloat16")
torch.manual_seed(0)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
x = torch.randn(batch, d_in, dtype=dtype)
w = torch.randn(d_sae, d_in, dtype=dtype)
seconds = []
with torch.inference_mode():
    for _ in range(11):
        began = time.perf_counter()
        x @ w.T
        seconds.append(time.perf_counter() - began)
print(json.dumps({"gflops": 2e-9 * batch * d_in * d_sae / median(seconds[2:])}))
