"""Times a transformers forward that collects one hidden state, the way the peers harvest.

Usage: harvest_peer.py MODEL_DIR TEXT LAYER N_TOKENS [float32|bfloat16]. Rows of 256 tokens that begin with BOS, batches of
32, in f32 unless another type is named.
hidden_states[LAYER + 1] is blocks.LAYER.hook_resid_post (but for the last layer: there the final norm comes first).
Prints one JSON line; the first batch warms up and is not counted.
"""

import json
import resource
import sys
import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

path, text, layer, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dtype = getattr(torch, sys.argv[5] if len(sys.argv) > 5 else "float32")
torch.set_num_threads(2)
model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{path}/tokenizer.json")
ids = []
with open(text, encoding="utf8", errors="ignore") as f:
    while len(ids) < n + 8192 and (chunk := f.read(200_000)):
        ids += tokenizer.encode(chunk, add_special_tokens=False)
bos = model.config.bos_token_id or 1
rows = [[bos] + ids[i : i + 255] for i in range(0, min(n + 32 * 255, len(ids) - 255), 255)]
done, began = 0, None
with torch.inference_mode():
    for i in range(0, len(rows) - 31, 32):
        if i == 32:
            began, done = time.perf_counter(), 0
        batch = torch.tensor(rows[i : i + 32])
        acts = model.model(batch, output_hidden_states=True).hidden_states[layer + 1][:, 1:].float().numpy()
        done += batch.numel()
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"tokens": done, "tok_s": done / seconds, "peak_rss_mb": peak}))
