"""Reads a store as STORE.md says that others can: with pyarrow, polars and DuckDB.

    python read_store.py STORE

Fails if the three disagree with each other, with the manifest, or with the contexts. Needs pyarrow, polars, duckdb and
numpy.
"""

import glob
import json
import sys

import duckdb
import numpy as np
import polars
import pyarrow.parquet as pq


def decode(raw: bytes, dtype: str, n: int) -> np.ndarray:
    """raw -> [n, d], float32"""
    if dtype == "bf16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(n, -1)
    return np.frombuffer(raw, {"f16": "<f2", "f32": "<f4"}[dtype]).reshape(n, -1).astype("<f4")


def check_spans(store: str, contexts: dict) -> None:
    """Every token knows its document, and where in it: per context with pyarrow, as tables with polars and DuckDB."""
    columns = ("tokens", "documents", "starts", "ends", "sources")
    for tokens, documents, starts, ends, sources in zip(*(contexts[c] for c in columns)):
        assert len(tokens) == len(documents) == len(starts) == len(ends)
        assert [s["document"] for s in sources] == list(dict.fromkeys(documents))
        assert all(start <= end for start, end in zip(starts, ends))
        assert all(s["file"] and s["record"] >= 0 for s in sources)
    assert contexts["document"] == [d[0] for d in contexts["documents"]]

    flat = polars.read_parquet(f"{store}/contexts-*.parquet").explode("tokens", "documents", "starts", "ends")
    rows = duckdb.sql(
        f"""with tokens as (
                select context, unnest(range(len(tokens))) as position, unnest(tokens) as token,
                       unnest(documents) as document, unnest(starts) as start, unnest("ends") as "end"
                from '{store}/contexts-*.parquet'),
            sources as (select distinct unnest(sources, recursive := true) from '{store}/contexts-*.parquet')
            select token, document, start, "end" from tokens join sources using (document)
            order by context, position"""
    ).fetchall()
    assert rows == list(flat.select("tokens", "documents", "starts", "ends").iter_rows())
    print(f"{len(rows)} tokens of {len(set(flat['documents']))} documents")


def main(store: str) -> None:
    manifest = json.load(open(f"{store}/manifest.json"))
    spec, dtype = manifest["spec"], manifest["spec"]["dtype"]
    paths = sorted(glob.glob(f"{store}/acts-*.parquet"))
    assert len(paths) == len(manifest["shards"])

    metadata = pq.read_schema(paths[0]).metadata
    assert metadata[b"sae.format"] == b"sae-activations" and metadata[b"sae.dtype"] == dtype.encode()
    assert json.loads(metadata[b"sae.hooks"]) == spec["hooks"]

    keys = pq.read_table(paths, columns=["context", "position", "token"])
    contexts = pq.read_table(sorted(glob.glob(f"{store}/contexts-*.parquet"))).to_pydict()
    assert contexts["context"] == list(range(manifest["n_contexts"]))
    assert sum(map(len, contexts["tokens"])) == manifest["n_tokens"]
    for context, position, token in zip(*(keys.column(i).to_pylist() for i in range(3))):
        assert contexts["tokens"][context][position] == token

    check_spans(store, contexts)

    for hook in spec["hooks"]:
        name, n = hook["name"], manifest["n_rows"]
        column = pq.read_table(paths, columns=[name]).column(0).combine_chunks()
        assert len(column) == n
        x = decode(column.buffers()[1], dtype, n)
        assert x.shape == (n, hook["d_in"]) and np.isfinite(x).all()

        frame = polars.read_parquet(f"{store}/acts-*.parquet", columns=["context", "position", "token", name])
        assert frame["context"].to_list() == keys.column(0).to_pylist()
        assert np.array_equal(decode(b"".join(frame[name].to_list()), dtype, n), x)

        rows = duckdb.sql(f"""select "{name}" from '{store}/acts-*.parquet' order by context, position""").fetchall()
        assert np.array_equal(decode(b"".join(row[0] for row in rows), dtype, n), x)
        print(f"{name}: {x.shape[0]} rows of {x.shape[1]} {dtype}, mean square {np.square(x).mean():.4g}")


if __name__ == "__main__":
    main(sys.argv[1])
