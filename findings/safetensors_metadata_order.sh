#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors with the same metadata do not give the same bytes.
#
# Expected: `save` is a function of its input, so that the SHA-256 of a file tells whether weights
# have changed (a registry, a cache or a CI artifact may be keyed by it).
# Seen: with one key of metadata all files are equal. With two or more keys, the keys are written in
# an order that changes from call to call, within one process, too: 40 files of two keys had 2
# digests, of three keys 6, which are all orders. What is loaded is the same.
# Way out: put everything into one key, as JSON, or take the digest of the tensors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.3.5
"$folder/venv/bin/python" - <<'PYTHON'
import hashlib

import numpy as np
from safetensors.numpy import load, save

tensors = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
for n_keys in (1, 2, 3):
    metadata = {name: "x" for name in ("labels", "mean", "size")[:n_keys]}
    files = [save(tensors, metadata) for _ in range(40)]
    digests = {hashlib.sha256(file).hexdigest() for file in files}
    assert all((load(file)["weight"] == tensors["weight"]).all() for file in files)
    print(f"{n_keys} keys: {len(digests)} digests of {len(files)} files")
    assert (len(digests) == 1) == (n_keys == 1)
PYTHON
