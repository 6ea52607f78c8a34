"""Reads codes as docs/codes.md says that others can: as a scipy matrix, with polars, with DuckDB, and as one array.

    python read_codes.py CODES DENSE

Runs the document's own Python over CODES. Fails if what comes out disagrees with the manifest, with itself, or with the
array in DENSE, which holds the codes of the first rows. Needs pyarrow, scipy, polars, duckdb and numpy.
"""

import json
import os
import pathlib
import re
import sys

import numpy as np


def blocks() -> list[str]:
    text = (pathlib.Path(__file__).parents[3] / "docs/codes.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def main(codes: str, dense: str) -> None:
    names: dict = {}
    directory = os.getcwd()
    os.chdir(pathlib.Path(codes).resolve().parent)
    for block in blocks():
        exec(block.replace("codes/", f"{pathlib.Path(codes).name}/"), names)
    matrix, manifest, rows = names["codes"], names["manifest"], names["rows"]
    d_sae = manifest["request"]["d_sae"]
    assert matrix.shape == (manifest["n_rows"], d_sae)
    assert matrix.nnz == manifest["n_entries"] and matrix.has_canonical_format
    assert np.isclose(matrix.nnz / matrix.shape[0], manifest["l0"])
    fires = np.bincount(matrix.indices, minlength=d_sae)
    assert (fires == 0).sum() == manifest["dead_latents"]

    # The entries say the same as the rows that they are counted in.
    entries = names["polars"].read_parquet(f"{pathlib.Path(codes).name}/codes-*.parquet")
    owner = np.repeat(np.arange(len(rows)), rows["active"].to_numpy())
    for key in ("context", "position"):
        assert (entries[key].to_numpy() == rows[key].to_numpy()[owner]).all()
    density = dict(names["density"].iter_rows())
    assert all(np.isclose(density[i], n / len(rows)) for i, n in enumerate(fires) if n)
    expected = np.sort(matrix[:, [42]].toarray()[:, 0])[::-1]
    strongest = [value for _, value in names["strongest"].fetchall()]
    assert np.allclose(strongest, expected[: len(strongest)])

    os.chdir(directory)
    array = np.load(f"{dense}/codes.npy", mmap_mode="r")
    n = json.load(open(f"{dense}/manifest.json"))["n_rows"]
    assert array.shape == (n, d_sae) and array.dtype == np.float32
    assert np.allclose(array, matrix[:n].toarray(), atol=1e-4)
    print(f"{matrix.shape[0]} rows of {d_sae} with {matrix.nnz} entries, {n} of them dense")


if __name__ == "__main__":
    main(*sys.argv[1:])
