#!/usr/bin/env python3
"""The recipe of `storyteller`, the small story model that ships with this project.

A Llama-architecture model of about two million parameters, distilled from stories15M on text that
stories15M wrote itself. The steps, each a subcommand (README.md has the exact commands):

    sample     draw stories from a model (the teacher, to make the text; or the finished student)
    split      cut a text into train, validation and held-out stories
    tokenizer  prune the teacher's tokenizer to the pieces that the text needs
    targets    run the teacher over the training text once and keep its top next-token probabilities
    draw       draw further training stories from the teacher, together with those probabilities
    train      train the student on them (resumable)
    export     write config.json and model.safetensors (f16)
    evaluate   bits per byte of models on the same text
    sinks      how the norm of the residual stream at position 0 compares with the rest

Needs torch, transformers, tokenizers, safetensors and numpy. Every step is seeded and runs on a CPU.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

UNK, BOS, EOS = 0, 1, 2
CONTEXT = 256
END_MARK = "<|end|>"  # the line that closes each story in a text file
TEMPERATURE, TOP_K = 0.95, 200  # how the teacher's text is drawn; its targets are tempered alike
KEPT = 32  # teacher probabilities kept per position

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 160,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 32,
    "vocab_size": 3072,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "torch_dtype": "float16",
}


# ---------------------------------------------------------------- text


def read_stories(path):
    """The stories of a text file, without their end marks."""
    stories = (s.strip() for s in Path(path).read_text(encoding="utf-8").split(END_MARK))
    return [s for s in stories if s]


def write_stories(path, stories):
    Path(path).write_text("".join(f"{s}\n{END_MARK}\n" for s in stories), encoding="utf-8")


def split(args):
    """The last `--held-out` bytes of whole stories, the `--validation` bytes before, and the rest."""
    stories = read_stories(args.text)
    sizes = np.array([len(s.encode()) + len(END_MARK) + 2 for s in stories])
    after = sizes[::-1].cumsum()[::-1]  # bytes from each story to the end
    first_held_out = int((after > args.held_out).sum())
    first_validation = int((after > args.held_out + args.validation).sum())
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    parts = {
        "train": stories[:first_validation],
        "validation": stories[first_validation:first_held_out],
        "held_out": stories[first_held_out:],
    }
    for name, part in parts.items():
        write_stories(out / f"{name}.txt", part)
        print(f"{name}.txt: {len(part)} stories, {(out / f'{name}.txt').stat().st_size} bytes")


# ---------------------------------------------------------------- tokenizer


def merge_parts(merge):
    """A merge rule's two parts (tokenizer.json stores "a b" or ["a", "b"])."""
    return tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)


def derivation(piece, rank):
    """The pieces that byte-pair encoding builds on the way from characters to `piece`."""
    parts, built = list(piece), []
    while len(parts) > 1:
        best = min(range(len(parts) - 1), key=lambda i: rank.get((parts[i], parts[i + 1]), math.inf))
        if (parts[best], parts[best + 1]) not in rank:
            return None  # not reachable by merges
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
        built.append(parts[best])
    return built


def prune_tokenizer(teacher, stories, size):
    """The teacher's tokenizer cut to `size` pieces: the special tokens, the 256 bytes, every character
    of the text, then the text's most frequent pieces, each with what it is merged from."""
    spec = json.loads((Path(teacher) / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = spec["model"]["vocab"]
    merges = [merge_parts(m) for m in spec["model"]["merges"]]
    rank = {m: i for i, m in reversed(list(enumerate(merges)))}
    name_of = {i: p for p, i in vocab.items()}

    full = Tokenizer.from_file(str(Path(teacher) / "tokenizer.json"))
    counts = np.zeros(len(vocab), np.int64)
    for encoding in full.encode_batch(stories, add_special_tokens=False):
        np.add.at(counts, encoding.ids, 1)

    kept = {name_of[i] for i in range(3 + 256)}  # <unk> <s> </s> <0x00> .. <0xFF>
    kept |= {c for c in set("".join(stories)) | {"▁"} if c in vocab}
    for i in np.argsort(-counts, kind="stable"):
        needed = derivation(name_of[i], rank) if name_of[i] not in kept else None
        if needed and len(kept | set(needed)) <= size:
            kept |= set(needed)
        if counts[i] == 0 or len(kept) == size:
            break

    order = sorted(kept, key=vocab.get)  # the teacher's order, renumbered without gaps
    spec["model"]["vocab"] = {piece: i for i, piece in enumerate(order)}
    spec["model"]["merges"] = [
        [a, b] for a, b in merges if a in kept and b in kept and a + b in kept
    ]
    return spec


def tokenizer(args):
    stories = read_stories(args.text)
    spec = prune_tokenizer(args.teacher, stories, CONFIG["vocab_size"])
    compact = json.dumps(spec, ensure_ascii=False, separators=(",", ":"))
    Path(args.out).write_text(compact, encoding="utf-8")

    pruned = Tokenizer.from_file(args.out)
    vocab = spec["model"]["vocab"]
    for piece in list(vocab)[3 + 256 :]:  # each piece is still what its own text encodes to
        text = piece.replace("▁", " ")
        ids = pruned.encode(text[1:] if text[0] == " " else text, add_special_tokens=False).ids
        if piece.startswith("▁") and piece.strip("▁"):
            assert ids == [vocab[piece]], piece
    samples = stories[:1000] + ["A 🦊 naïve café — 東京\n\n  two  spaces", "¿Qué? ☃", "x"]
    for text in samples:
        assert pruned.decode(pruned.encode(text).ids) == text, text
    ids = sum(len(e.ids) - 1 for e in pruned.encode_batch(stories[:2000]))
    size = sum(len(s.encode()) for s in stories[:2000])
    print(f"{len(vocab)} pieces, {len(spec['model']['merges'])} merges, {size / ids:.3f} bytes a token")


def byte_lengths(tok):
    """[vocabulary] the bytes of normalised text that each piece stands for (a space counts as one)."""
    lengths = np.zeros(tok.get_vocab_size(), np.int64)
    for piece, i in tok.get_vocab().items():
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        lengths[i] = 1 if is_byte else len(piece.replace("▁", " ").encode())
    lengths[[UNK, BOS, EOS]] = 0
    return lengths


# ---------------------------------------------------------------- teacher's targets


def load(path, dtype=torch.float32):
    """A Hugging Face model directory as (model, tokenizer)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    return model, Tokenizer.from_file(str(Path(path) / "tokenizer.json"))


def padded(rows):
    """Rows of ids as one [row, longest] tensor; what is padded sits to the right, unseen by causal attention."""
    out = torch.full((len(rows), max(map(len, rows))), EOS)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.as_tensor(row)
    return out


class Targets:
    """The arrays of a training set, in one folder: tokens.npy [n] u16; starts.npy [stories + 1]; ids.npy
    [n, KEPT + 1] u16 and probs.npy [n, KEPT + 1] f16, the target distribution of token j given those
    before it. Its last column is the token itself, with weight 1 where the teacher's list has no word
    on it: the expectation of that over the text's sampling is exactly the tail that was cut off."""

    NAMES = ("tokens", "starts", "ids", "probs")

    def __init__(self, folder, mode="r"):
        for name in self.NAMES:
            setattr(self, name, np.load(Path(folder) / f"{name}.npy", mmap_mode=mode))

    @classmethod
    def create(cls, folder, rows):
        """Targets that are the text's own tokens, for the teacher's to be written over."""
        tokens, n = np.concatenate(rows), sum(map(len, rows))
        ids = np.zeros((n, KEPT + 1), np.uint16)
        probs = np.zeros((n, KEPT + 1), np.float16)
        starts = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
        ids[:, KEPT], probs[:, KEPT] = tokens, 1
        probs[starts[:-1], KEPT] = 0  # nothing predicts BOS
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, array in zip(cls.NAMES, (tokens.astype(np.uint16), starts, ids, probs)):
            np.save(Path(folder) / f"{name}.npy", array)


class Spelling:
    """What the teacher's candidates for the next token mean to the student: `pieces` are the teacher's
    ids that occur in the text, before them its end of story (BOS, which the student calls EOS)."""

    def __init__(self, teacher_tok, student_tok, used):
        self.pieces = np.concatenate([[BOS], used])
        self.column_of = np.zeros(teacher_tok.get_vocab_size(), np.int64)
        self.column_of[self.pieces] = np.arange(len(self.pieces))
        vocab, plain = student_tok.get_vocab(), Tokenizer.from_str(student_tok.to_str())
        plain.normalizer = None  # pieces are spelled in normalised text already
        first = [EOS]  # the first student piece of each
        for i in used.tolist():
            piece = teacher_tok.id_to_token(i)
            first.append(vocab[piece] if piece in vocab else plain.encode(piece, add_special_tokens=False).ids[0])
        self.first_piece = np.asarray(first)
        self.teacher_bytes, self.student_bytes = byte_lengths(teacher_tok), byte_lengths(student_tok)

    def record(self, out, story, teacher_ids, columns, probs):
        """Write the teacher's expectations into a story's targets. columns, probs [p, KEPT]: what it
        expected after its first p tokens (p = 0 is BOS alone), likeliest first.

        Both tokenizers cut a story at nearly the same places. Where a student token starts at a teacher
        token's start, the teacher's distribution is carried over: each teacher piece counts for the first
        student piece of its spelling. Elsewhere, and for the tail, the token in the text is the target.
        """
        begin, end = out.starts[story : story + 2]
        row = out.tokens[begin:end].astype(np.int64)
        # The teacher's position p predicts the token that starts at byte `ends[p]`.
        ends = np.concatenate([[0], self.teacher_bytes[teacher_ids].cumsum()])[: len(columns)]
        begins = np.concatenate([[0], self.student_bytes[row[1:]].cumsum()[:-1]])
        _, p, j = np.intersect1d(ends, begins, return_indices=True)
        follows = self.column_of[np.asarray([*teacher_ids, BOS])[p]]  # the teacher's own next token
        j += begin + 1
        agree = self.first_piece[follows] == out.tokens[j]
        p, j, follows = p[agree], j[agree], follows[agree]
        out.ids[j, :KEPT] = self.first_piece[columns[p]]
        out.probs[j, :KEPT] = probs[p]
        out.probs[j, KEPT] = ~(columns[p] == follows[:, None]).any(-1)


def targets(args):
    """Tokenise the text for the student and record, for every token, what the teacher expected there,
    tempered and truncated as the text was drawn."""
    stories = read_stories(args.text)
    teacher_tok = Tokenizer.from_file(str(Path(args.teacher) / "tokenizer.json"))
    student_tok = Tokenizer.from_file(args.tokenizer)
    encode = lambda tok: [np.asarray(e.ids) for e in tok.encode_batch(stories, add_special_tokens=False)]
    teacher_ids, student_ids = encode(teacher_tok), encode(student_tok)

    # One story is BOS, its tokens and, if the teacher ended it within its context, EOS.
    whole = [len(t) < CONTEXT - 2 for t in teacher_ids]
    rows = [np.concatenate([[BOS], s, [EOS] * w]).astype(int) for s, w in zip(student_ids, whole)]
    Targets.create(args.out, rows)
    torch.multiprocessing.spawn(targets_worker, (args, teacher_ids), nprocs=args.workers)
    print(f"{sum(map(len, rows))} tokens, {(Targets(args.out).probs[:, 0] > 0).mean():.1%} with the teacher's targets")


def likeliest(logits, temperature, top_k):
    """The `top_k` likeliest columns of each row of logits, as (columns, probabilities)."""
    value, column = logits.topk(min(top_k, logits.shape[-1]), -1)
    return column, (value.float() / temperature).softmax(-1)


@torch.inference_mode()
def targets_worker(rank, args, teacher_ids):
    """The targets of every `--workers`-th batch of stories."""
    torch.set_num_threads(1)
    teacher, teacher_tok = load(args.teacher, torch.bfloat16)
    used = np.unique(np.concatenate(teacher_ids))
    spelling = Spelling(teacher_tok, Tokenizer.from_file(args.tokenizer), used)
    head = teacher.get_output_embeddings().weight[torch.as_tensor(spelling.pieces)]  # [candidates, d]
    out = Targets(args.out, "r+")

    by_length = np.argsort([len(t) for t in teacher_ids], kind="stable")
    began = time.time()
    for at in range(rank * args.batch, len(by_length), args.workers * args.batch):
        batch = by_length[at : at + args.batch]
        inputs = [[BOS, *teacher_ids[i]][:CONTEXT] for i in batch]
        hidden = teacher.model(padded(inputs)).last_hidden_state  # [row, position, d]
        for i, row, h in zip(batch, inputs, hidden):
            column, prob = likeliest(h[: len(row)] @ head.T, TEMPERATURE, TOP_K)
            spelling.record(out, i, teacher_ids[i], column[:, :KEPT].numpy(), prob[:, :KEPT].numpy())
        if rank == 0 and at // args.batch % (10 * args.workers) == 0:
            print(f"{at + len(batch)} of {len(by_length)} stories, {time.time() - began:.0f} s", flush=True)


# ---------------------------------------------------------------- drawing stories


class Decoder:
    """A Llama checkpoint that writes `rows` stories at once, on one thread in bf16: keys and values lie
    in one block, and attention is two batched matrix-vector products over it."""

    def __init__(self, path, rows, pieces=None):
        """`pieces`: the ids that may be drawn, all by default."""
        model, self.tokenizer = load(path, torch.bfloat16)
        c = model.config
        self.eps, self.width = c.rms_norm_eps, c.hidden_size // c.num_attention_heads
        assert c.num_key_value_heads == c.num_attention_heads, "grouped heads"
        self.embedding, head = model.model.embed_tokens.weight, model.get_output_embeddings().weight
        self.pieces = torch.arange(len(head)) if pieces is None else torch.as_tensor(pieces)
        self.head, self.norm = head[self.pieces], model.model.norm.weight
        self.blocks = [
            (b.input_layernorm.weight,
             torch.cat([b.self_attn.q_proj.weight, b.self_attn.k_proj.weight, b.self_attn.v_proj.weight]),
             b.self_attn.o_proj.weight, b.post_attention_layernorm.weight,
             torch.cat([b.mlp.gate_proj.weight, b.mlp.up_proj.weight]), b.mlp.down_proj.weight)
            for b in model.model.layers
        ]
        positions = torch.arange(CONTEXT)[None]
        self.cos, self.sin = (x[0] for x in model.model.rotary_emb(torch.zeros(1), positions))  # [position, width]
        shape = (len(self.blocks), rows, c.num_attention_heads, CONTEXT, self.width)
        self.keys, self.values = torch.zeros(shape, dtype=torch.bfloat16), torch.zeros(shape, dtype=torch.bfloat16)

    def rotate(self, x, t):
        a, b = x.chunk(2, -1)
        return (x * self.cos[t] + torch.cat([-b, a], -1) * self.sin[t]).to(x.dtype)

    def logits(self, ids, t):
        """ids [row], the tokens at position t -> logits [row, piece] of the next."""
        n, x = len(ids), self.embedding[ids]
        for keys, values, (norm1, qkv, o, norm2, gate_up, down) in zip(self.keys, self.values, self.blocks):
            h = F.rms_norm(x, x.shape[-1:], norm1, self.eps) @ qkv.T
            q, k, v = h.view(n, 3, -1, self.width).unbind(1)  # [row, head, width]
            keys[:n, :, t], values[:n, :, t] = self.rotate(k, t), v
            past_keys, past_values = (y[:n].flatten(0, 1)[:, : t + 1] for y in (keys, values))
            q = (self.rotate(q, t) * self.width**-0.5).flatten(0, 1)
            scores = torch.bmm(past_keys, q[:, :, None]).mT.float()
            mixed = torch.bmm(scores.softmax(-1).bfloat16(), past_values)
            x = x + mixed.view(n, -1) @ o.T
            gate, up = (F.rms_norm(x, x.shape[-1:], norm2, self.eps) @ gate_up.T).chunk(2, -1)
            x = x + (F.silu(gate) * up) @ down.T
        return F.rms_norm(x, x.shape[-1:], self.norm, self.eps) @ self.head.T

    def keep(self, rows):
        """Forget all rows but these, which become the first."""
        for cache in (*self.keys, *self.values):
            cache[: len(rows)] = cache[rows]


@torch.inference_mode()
def draw_stories(decoder, rows, temperature, top_k, generator):
    """`rows` stories drawn from BOS until they end or fill the context, each as ids [n] without BOS and
    end; whether it ended; and columns, probs [n or, if ended, n + 1, KEPT]: what was expected there."""
    full = CONTEXT - 1
    drawn = torch.zeros(full, rows, dtype=torch.long)
    columns, probs = torch.zeros(full, rows, KEPT, dtype=torch.long), torch.zeros(full, rows, KEPT)
    lengths = torch.full((rows,), full)
    going, ids = torch.arange(rows), torch.full((rows,), BOS)
    for t in range(full):
        column, prob = likeliest(decoder.logits(ids, t), temperature, top_k)
        choice = torch.multinomial(prob, 1, generator=generator)
        ids = decoder.pieces[column.gather(1, choice)[:, 0]]
        drawn[t, going], columns[t, going], probs[t, going] = ids, column[:, :KEPT], prob[:, :KEPT]
        ended = (ids == BOS) | (ids == EOS)
        lengths[going[ended]] = lengths[going[ended]].clamp(max=t)
        live = (lengths[going] == full).nonzero()[:, 0]
        if len(live) == 0:
            break
        if len(live) < 0.85 * len(going):  # the rows that ended are dropped once they are many
            decoder.keep(live)
            going, ids = going[live], ids[live]
    for row, n in enumerate(lengths.tolist()):
        kept = min(n + 1, full)
        yield drawn[:n, row], n < full, columns[:kept, row], probs[:kept, row]


def written(tok, ids):
    """The text of drawn ids: unedited but for blank lines, which the text format has none of."""
    return tok.decode(ids.tolist()).strip().replace("\n\n", "\n")


def draw(args):
    """Draw further stories from the teacher and keep what it expected at every token, as `targets` does
    for a given text. Finished batches of an earlier run are kept."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(draw_worker, (args,), nprocs=args.workers)

    student_tok, spelling, newline = drawing_tools(args)
    stories, teacher_tok = [], Tokenizer.from_file(str(Path(args.teacher) / "tokenizer.json"))
    left_out = 0
    for part in sorted(out.glob("drawn-*.npz")):
        arrays = np.load(part)
        ids, starts = arrays["ids"].astype(np.int64), arrays["starts"]
        columns, probs, ended = arrays["columns"], arrays["probs"], arrays["ended"]
        for i, whole in enumerate(map(int, ended)):
            begin, end = starts[i : i + 2]
            n = end - begin - whole  # the row behind the last token of a whole story is its end's
            row = ids[begin : begin + n]
            text = written(teacher_tok, torch.as_tensor(row))
            blank = (row == newline) & (np.concatenate([[0], row[:-1]]) == newline)
            stay = begin + np.flatnonzero(~np.concatenate([blank, np.zeros(whole, bool)]))
            row, student = row[~blank], student_tok.encode(text, add_special_tokens=False).ids
            if spelling.teacher_bytes[row].sum() != spelling.student_bytes[student].sum():
                left_out += 1  # the text is not what was drawn: spaces at an end, several blank lines
                continue
            student = np.concatenate([[BOS], student, [EOS] * whole]).astype(int)
            stories.append((row, student, columns[stay], probs[stay]))
    Targets.create(out, [student for _, student, _, _ in stories])
    targets = Targets(out, "r+")
    for i, (row, _, columns, probs) in enumerate(stories):
        spelling.record(targets, i, row, columns, probs)
    told = (targets.probs[:, 0] > 0).mean()
    print(f"{len(stories)} stories ({left_out} left out), {len(targets.tokens)} tokens, {told:.1%} with the teacher's targets")


def drawing_tools(args):
    """The student's tokenizer, the candidates' spelling and the teacher's newline."""
    teacher_tok = Tokenizer.from_file(str(Path(args.teacher) / "tokenizer.json"))
    student_tok = Tokenizer.from_file(args.tokenizer)
    encoded = teacher_tok.encode_batch(read_stories(args.text), add_special_tokens=False)
    spelling = Spelling(teacher_tok, student_tok, np.unique(np.concatenate([e.ids for e in encoded])))
    return student_tok, spelling, teacher_tok.token_to_id("<0x0A>")


def draw_worker(rank, args):
    """Every `--workers`-th batch of drawn stories, a file each."""
    torch.set_num_threads(1)
    _, spelling, _ = drawing_tools(args)
    decoder = Decoder(args.teacher, args.batch, spelling.pieces)
    began, tokens = time.time(), 0
    for batch in range(rank, -(-args.count // args.batch), args.workers):
        path = Path(args.out) / f"drawn-{batch:05}.npz"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(args.seed * 1_000_000 + batch)
        ids, ended, columns, probs = zip(*draw_stories(decoder, args.batch, TEMPERATURE, TOP_K, generator))
        padded_ids = [torch.cat([i, i.new_zeros(w)]) for i, w in zip(ids, map(int, ended))]  # a row for the end
        arrays = {
            "ids": torch.cat(padded_ids).numpy().astype(np.uint16),
            "columns": torch.cat(columns).numpy().astype(np.uint16),
            "probs": torch.cat(probs).half().numpy(),
            "starts": np.concatenate([[0], np.cumsum([len(c) for c in columns])]),
            "ended": np.asarray(ended),
        }
        np.savez(path.with_suffix(".tmp.npz"), **arrays)
        path.with_suffix(".tmp.npz").rename(path)
        tokens += len(arrays["ids"])
        if rank == 0:
            print(f"batch {batch}: {tokens} tokens, {tokens / (time.time() - began):.0f} a second", flush=True)


# ---------------------------------------------------------------- student


class Block(nn.Module):
    """A Llama block; parameters carry the names that `transformers` gives them."""

    def __init__(self, c):
        super().__init__()
        d, f = c["hidden_size"], c["intermediate_size"]
        q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
        self.head_dim, self.eps = c["head_dim"], c["rms_norm_eps"]
        self.self_attn = nn.ModuleDict({
            "q_proj": nn.Linear(d, q, bias=False),
            "k_proj": nn.Linear(d, kv, bias=False),
            "v_proj": nn.Linear(d, kv, bias=False),
            "o_proj": nn.Linear(q, d, bias=False),
        })
        self.mlp = nn.ModuleDict({
            "gate_proj": nn.Linear(d, f, bias=False),
            "up_proj": nn.Linear(d, f, bias=False),
            "down_proj": nn.Linear(f, d, bias=False),
        })
        self.input_layernorm = nn.RMSNorm(d, eps=self.eps)
        self.post_attention_layernorm = nn.RMSNorm(d, eps=self.eps)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape

        def heads(y):  # [b, t, heads * head_dim] -> [b, heads, t, head_dim]
            return y.view(b, t, -1, self.head_dim).transpose(1, 2)

        def rotate(y):
            y1, y2 = y.chunk(2, -1)
            return torch.cat([y1 * cos - y2 * sin, y2 * cos + y1 * sin], -1)

        attn, mlp = self.self_attn, self.mlp
        h = self.input_layernorm(x)
        q, k, v = rotate(heads(attn["q_proj"](h))), rotate(heads(attn["k_proj"](h))), heads(attn["v_proj"](h))
        with torch.autocast("cpu", enabled=False):  # quicker in f32 than in bf16 here
            o = F.scaled_dot_product_attention(q, k, v.float(), is_causal=True)
        x = x + attn["o_proj"](o.transpose(1, 2).reshape(b, t, -1))
        h = self.post_attention_layernorm(x)
        return x + mlp["down_proj"](F.silu(mlp["gate_proj"](h)) * mlp["up_proj"](h))


class Student(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.embed_tokens = nn.Embedding(c["vocab_size"], d)
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(d, eps=c["rms_norm_eps"])
        inverse = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"])
        angle = torch.outer(torch.arange(CONTEXT), inverse)  # [position, head_dim / 2]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5)
            if "o_proj" in name or "down_proj" in name:
                p.data /= math.sqrt(2 * c["num_hidden_layers"])

    def forward(self, tokens):
        """tokens [b, t] -> the final normed states [b, t, d]; logits are these times the embedding."""
        x = self.embed_tokens(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class SoftCrossEntropy(torch.autograd.Function):
    """Mean over rows of -sum_k p_k log softmax(h W^T)[id_k], head and gradient in one pass by chunks of
    rows, so that [rows, vocabulary] never leaves the cache. h [n, d], W [v, d], ids and p [n, k].
    Products in bf16, the softmax and all sums in f32."""

    CHUNK = 512

    @staticmethod
    def forward(ctx, h, w, ids, p):
        h16, w16 = h.bfloat16(), w.bfloat16()
        dh, dw, loss = torch.empty_like(h), torch.zeros_like(w), 0.0
        for at in range(0, len(h), SoftCrossEntropy.CHUNK):
            rows = slice(at, at + SoftCrossEntropy.CHUNK)
            z = (h16[rows] @ w16.T).float()
            lse = z.logsumexp(-1, keepdim=True)
            mass = p[rows].sum(-1, keepdim=True)
            loss += float((mass * lse).sum() - (p[rows] * z.gather(1, ids[rows])).sum())
            g = z.sub_(lse).exp_().mul_(mass).scatter_add_(1, ids[rows], -p[rows]).bfloat16()
            dh[rows] = g @ w16
            dw += g.T @ h16[rows]
        ctx.save_for_backward(dh / len(h), dw / len(h))
        return h.new_tensor(loss / len(h))

    @staticmethod
    def backward(ctx, up):
        dh, dw = ctx.saved_tensors
        return dh * up, dw * up, None, None


class Muon:
    """Momentum whose update is orthogonalised by five Newton-Schulz steps, for the matrices of the
    blocks; matrices of one shape are handled as one batch."""

    def __init__(self, params, momentum=0.95):
        self.momentum = momentum
        self.groups = {}
        for p in params:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.state = {s: torch.zeros(len(g), *s) for s, g in self.groups.items()}

    @torch.no_grad()
    def step(self, lr, decay):
        for shape, group in self.groups.items():
            grad, m = torch.stack([p.grad for p in group]), self.state[shape]
            m.lerp_(grad, 1 - self.momentum)
            x = grad.lerp(m, self.momentum).bfloat16()  # Nesterov
            tall = shape[0] > shape[1]
            x = x.mT if tall else x
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.mT
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            x = x.mT if tall else x
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            for p, update in zip(group, x):
                p.mul_(1 - lr * decay).add_(update.float(), alpha=-lr * scale)


class Rows:
    """Endless training rows: a story from its BOS, filled up with the stories that follow it in this
    epoch's order. `batch(step)` depends on the seed and the step alone, so a run can resume anywhere;
    `part` says which rows of each batch to return."""

    def __init__(self, data, batch, seed, part=slice(None)):
        """`data`: the folders of the targets, whose stories are shuffled together."""
        self.sets = [Targets(folder) for folder in data]
        self.story = [(t, *span) for t in self.sets for span in zip(t.starts[:-1], t.starts[1:])]
        self.batch_size, self.seed, self.part = batch, seed, part
        self.epoch = None

    def batch(self, step):
        """tokens [b, t], ids and probs [b * t, KEPT + 1] for the step."""
        epoch, at = divmod(step, len(self.story) // self.batch_size)
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.story))
        tokens, ids, probs = [], [], []
        for r in range(at * self.batch_size, (at + 1) * self.batch_size)[self.part]:
            spans, room = [], CONTEXT + 1
            while room > 0:
                source, begin, end = self.story[self.order[r % len(self.story)]]
                spans.append((source, begin, min(end, begin + room)))
                room -= end - begin
                r += 1
            gather = lambda name: np.concatenate([getattr(t, name)[a:b] for t, a, b in spans])
            tokens.append(gather("tokens")[:-1])
            ids.append(gather("ids")[1:])
            probs.append(gather("probs")[1:])
        return (
            torch.from_numpy(np.stack(tokens).astype(np.int64)),
            torch.from_numpy(np.concatenate(ids).astype(np.int64)),
            torch.from_numpy(np.concatenate(probs).astype(np.float32)),
        )


def rate(step, steps, warmup, decay):
    """The learning rate's factor: warm-up, constant, then linear to zero over the last `decay` share."""
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1, int(steps * decay)))


@torch.no_grad()
def validation_loss(model, rows):
    """Mean nats per token over single stories, the text's own tokens only."""
    nats, count = 0.0, 0
    for at in range(0, len(rows), 32):
        tokens = padded([r[:CONTEXT] for r in rows[at : at + 32]])
        h = model(tokens)
        for i, row in enumerate(rows[at : at + 32]):
            target = torch.as_tensor(row[1 : CONTEXT + 1])
            logits = h[i, : len(target)] @ model.embed_tokens.weight.T
            nats += float(F.cross_entropy(logits, target, reduction="sum"))
            count += len(target)
    return nats / count


def train(args):
    """Distil the student: Muon for the blocks' matrices, AdamW for the embedding and the norms. With
    `--workers`, each process takes its share of every batch on one thread and gradients are averaged.
    An existing checkpoint is resumed; until the final decay begins, `--steps` may change between runs."""
    meeting = Path(args.checkpoint).with_suffix(".rendezvous").resolve()
    meeting.unlink(missing_ok=True)
    torch.multiprocessing.spawn(train_worker, (args, f"file://{meeting}"), nprocs=args.workers)


def train_worker(rank, args, meeting):
    """One of `--workers` replicas, which stay identical; the first one logs, validates and saves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=args.workers)
    torch.manual_seed(args.seed)
    model = Student(CONFIG)
    average = copy.deepcopy(model)  # exponential moving average of the weights
    named = list(model.named_parameters())
    params = [p for _, p in named]
    muon = Muon([p for n, p in named if p.ndim == 2 and "embed" not in n])
    others = [p for n, p in named if p.ndim == 1 or "embed" in n]
    adam = torch.optim.AdamW(others, lr=args.lr_adam, betas=(0.9, 0.98), weight_decay=0.0)
    rows = Rows(args.data, args.batch, args.seed, slice(rank, None, args.workers))
    forward = torch.compile(model, dynamic=False)  # a third quicker: the small element-wise steps fuse

    checkpoint, first = Path(args.checkpoint), 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        adam.load_state_dict(saved["adam"])
        muon.state, first = saved["muon"], saved["step"]

    if rank == 0:
        tok = Tokenizer.from_file(args.tokenizer)
        held = [e.ids for e in tok.encode_batch(read_stories(args.validation)[:128])]
        held_bytes = sum(byte_lengths(tok)[r[1 : CONTEXT + 1]].sum() for r in held)
        held_tokens = sum(min(len(r) - 1, CONTEXT) for r in held)
        print(f"from step {first} to {args.steps}", flush=True)

    began, seen = time.time(), []
    for step in range(first, args.steps):
        factor = rate(step, args.steps, args.warmup, args.decay)
        tokens, ids, probs = rows.batch(step)
        with torch.autocast("cpu", torch.bfloat16):
            h = forward(tokens)
        loss = SoftCrossEntropy.apply(h.flatten(0, 1).float(), model.embed_tokens.weight, ids, probs)
        model.zero_grad()
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in params]) / args.workers
        dist.all_reduce(grads)
        for p, grad in zip(params, grads.split([p.numel() for p in params])):
            p.grad.copy_(grad.view_as(p))
        muon.step(args.lr_muon * factor, args.weight_decay)
        adam.param_groups[0]["lr"] = args.lr_adam * factor
        adam.step()
        with torch.no_grad():
            keep = min(args.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), params, 1 - keep)

        done = step + 1
        seen.append(loss.item())
        if rank == 0 and done % 20 == 0:
            speed = (done - first) * args.batch * CONTEXT / (time.time() - began)
            print(f"step {done} loss {np.mean(seen):.4f} rate {factor:.3f} {speed:.0f} tokens/s", flush=True)
            seen = []
        if rank == 0 and (done % args.save_every == 0 or done == args.steps):
            nats = validation_loss(average, held)
            bits = nats * held_tokens / math.log(2) / held_bytes
            print(f"step {done} validation {nats:.4f} nats a token, {bits:.4f} bits a byte", flush=True)
            state = {
                "model": model.state_dict(), "average": average.state_dict(),
                "adam": adam.state_dict(), "muon": muon.state, "step": done,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)
    dist.destroy_process_group()


def export(args):
    """The averaged weights of a checkpoint as a Hugging Face directory."""
    weights = torch.load(args.checkpoint)["average"]
    tensors = {f"model.{name}": w.half().contiguous() for name, w in weights.items()}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    count = sum(t.numel() for t in tensors.values())
    print(f"{count} parameters, {(out / 'model.safetensors').stat().st_size} bytes")


# ---------------------------------------------------------------- looking at a finished model


def boundaries(ids, lengths):
    """The byte at which each of the first CONTEXT tokens ends."""
    return lengths[np.asarray(ids[:CONTEXT], np.int64)].cumsum()


@torch.inference_mode()
def evaluate(args):
    """Bits per byte of each model on the same text, story by story from BOS. A story longer than a
    context is cut, for all models alike, at the last byte where every model has a token end."""
    stories = read_stories(args.text)[: args.stories]
    models = [load(path) for path in args.models]
    lengths = [byte_lengths(tok) for _, tok in models]
    encoded = [[e.ids for e in t.encode_batch(stories, add_special_tokens=False)] for _, t in models]

    counts, total_bytes = [[] for _ in models], 0
    for i in range(len(stories)):
        ends = [boundaries(ids[i], n) for ids, n in zip(encoded, lengths)]
        cut = max(set.intersection(*(set(e.tolist()) for e in ends)))
        total_bytes += cut - 1  # less the space that the tokenizers put before a text
        for count, e in zip(counts, ends):
            count.append(int((e <= cut).sum()))
    print(f"{len(stories)} stories, {total_bytes} bytes")

    results = []
    for path, (model, _), ids, count in zip(args.models, models, encoded, counts):
        nats, order = 0.0, np.argsort(count, kind="stable")
        for at in range(0, len(order), 16):
            batch = order[at : at + 16]
            logits = model(padded([[BOS, *ids[i][: count[i] - 1]] for i in batch])).logits
            for row, i in zip(logits, batch):
                target = torch.as_tensor(ids[i][: count[i]])
                nats += float(F.cross_entropy(row[: count[i]].float(), target, reduction="sum"))
        results.append(nats / math.log(2) / total_bytes)
        print(f"{path}: {results[-1]:.4f} bits a byte, {sum(count)} tokens, {nats / sum(count):.4f} nats a token")
    print(f"ratio of the first to the last: {results[0] / results[-1]:.3f}")


@torch.inference_mode()
def sinks(args):
    """After each block: the norm at position 0 (BOS), and median and largest norm elsewhere."""
    model, tok = load(args.model)
    stories = read_stories(args.text)[:64]
    rows = [[BOS, *e.ids][:CONTEXT] for e in tok.encode_batch(stories, add_special_tokens=False)]
    tokens = padded([r[: min(map(len, rows))] for r in rows])
    norms = []  # one [story, position] a block

    def record(_module, _inputs, output):
        x = output[0] if isinstance(output, tuple) else output
        norms.append(x.norm(dim=-1))

    for layer in model.model.layers:
        layer.register_forward_hook(record)
    model.model(tokens)
    for block, norm in enumerate(norms):
        print(f"block {block}: BOS {norm[:, 0].mean():.2f}, "
              f"elsewhere median {norm[:, 1:].median():.2f}, largest {norm[:, 1:].max():.2f}")


def sample(args):
    """Stories from BOS at a temperature, in the text format. Stories that do not end within the context
    are cut there."""
    torch.set_num_threads(1)
    decoder = Decoder(args.model, args.batch)
    generator = torch.Generator().manual_seed(args.seed)
    stories = []
    while len(stories) < args.count:
        rows = min(args.batch, args.count - len(stories))
        drawn = draw_stories(decoder, rows, args.temperature, args.top_k, generator)
        stories += [written(decoder.tokenizer, ids) for ids, *_ in drawn]
    if args.out:
        write_stories(args.out, stories)
    else:
        print(f"\n{END_MARK}\n".join(stories))


# ---------------------------------------------------------------- command line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(run, **options):
        p = commands.add_parser(run.__name__, help=(run.__doc__ or "").split("\n")[0])
        p.set_defaults(run=run)
        for name, kind in options.items():
            flag = "--" + name.replace("_", "-")
            if kind is str:
                p.add_argument(flag, required=True)
            elif kind is list:
                p.add_argument(flag, required=True, nargs="+")
            else:
                p.add_argument(flag, type=type(kind), default=kind)

    command(sample, model=str, count=6, temperature=0.8, top_k=TOP_K, seed=0, batch=64, out="")
    command(split, text=str, out=str, held_out=2_000_000, validation=500_000)
    command(tokenizer, teacher=str, text=str, out=str)
    command(targets, teacher=str, text=str, tokenizer=str, out=str, batch=16, workers=2)
    command(draw, teacher=str, text=str, tokenizer=str, out=str, count=50_000, batch=256, workers=2, seed=1)
    command(train, data=list, tokenizer=str, validation=str, checkpoint=str, steps=5000, batch=24,
            warmup=100, decay=0.5, lr_muon=0.02, lr_adam=0.004, weight_decay=0.0, average=0.99,
            save_every=200, workers=2, seed=0)
    command(export, checkpoint=str, out=str)
    command(evaluate, models=list, text=str, stories=1_000_000)
    command(sinks, model=str, text=str)

    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
