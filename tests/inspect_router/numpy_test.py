# SPDX-License-Identifier: MIT
"""inspect_router on files that NumPy wrote, against NumPy's own arithmetic.

Usage: numpy_test.py <inspect_router>. If the package safetensors is installed, it writes the
.safetensors file too; else that file follows the published format by hand.
"""
import base64
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np


def no_constant(word):
    raise ValueError(word + " is not JSON")


def inspect(program, folder, *arguments):
    subprocess.run([program, *arguments, "--no-png", "--out", "out"], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL)
    with open(os.path.join(folder, "out", "inspect.json"), encoding="utf-8") as file:
        return json.load(file, parse_constant=no_constant)["layers"]


def cosines(weights):
    rows = weights.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    result = rows @ rows.T
    np.fill_diagonal(result, -2)
    return result


def check_similarity(layer, weights):
    similarity = layer["similarity"]
    expected = cosines(weights)
    got = similarity["partner_cosine_of_expert"]
    np.testing.assert_allclose(got, expected.max(axis=1), atol=1e-5)
    partners = similarity["partner_of_expert"]
    np.testing.assert_allclose(expected[np.arange(len(partners)), partners], expected.max(axis=1),
                               atol=1e-5)
    spectrum = np.linalg.eigvalsh(expected + 3 * np.eye(len(expected)))
    spectrum = spectrum[spectrum > 0] / spectrum.sum()
    np.testing.assert_allclose(similarity["spectral_entropy"],
                               -(spectrum * np.log(spectrum)).sum(), atol=1e-4)
    off_diagonal = expected[~np.eye(len(expected), dtype=bool)]
    np.testing.assert_allclose(similarity["pairs"]["mean"], off_diagonal.mean(), atol=1e-6)
    np.testing.assert_allclose(similarity["pairs"]["deviation"], off_diagonal.std(), atol=1e-6)


def pixels(png):
    """The palette's indices in a .png of 8 bits without filters; the checksums are checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data = 8, b""
    while at < len(png):
        size, = struct.unpack(">I", png[at:at + 4])
        kind, body = png[at + 4:at + 8], png[at + 8:at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size:at + 12 + size])[0] == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
        data += body if kind == b"IDAT" else b""
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width)
    assert not rows[:, 0].any()
    return rows[:, 1:].astype(int)


def check_heat_map(folder, layer, weights):
    """The first picture of the page: cosines, in the order of the clusters, on a round scale."""
    with open(os.path.join(folder, "out", "index.html"), encoding="utf-8") as file:
        page = file.read()
    address = re.search(r'href="data:image/png;base64,([^"]*)"', page).group(1)
    limit = float(re.search(r'text-anchor="end">(0\.\d+|1\.0)</text>\n<text[^>]*>cosine of router',
                            page).group(1))
    got = pixels(base64.b64decode(address, validate=True))
    experts = len(weights)
    repeat = len(got) // experts
    assert got.shape == (repeat * experts, repeat * experts)
    np.testing.assert_array_equal(got, got[::repeat, ::repeat].repeat(repeat, 0).repeat(repeat, 1))
    order = layer["cluster_order"]
    expected = cosines(weights)[np.ix_(order, order)]
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(got[::repeat, ::repeat], 127 + 127 * expected / limit, atol=0.51)


def write_safetensors(path, tensors):
    try:
        from safetensors.numpy import save_file
        save_file(tensors, path)
        return
    except ImportError:
        pass
    names = {np.dtype("float32"): "F32", np.dtype("float16"): "F16", np.dtype("float64"): "F64"}
    header, data = {"__metadata__": {"format": "np"}}, b""
    for name, tensor in tensors.items():
        begin = len(data)
        data += tensor.tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def main(program):
    random = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as folder:
        tensors = {}
        for dtype in (np.float16, np.float32, np.float64):
            for version in ((1, 0), (2, 0), (3, 0)):
                weights = random.normal(size=(40, 96)).astype(dtype)
                with open(os.path.join(folder, "w.npy"), "wb") as file:
                    np.lib.format.write_array(file, weights, version=version)
                layer = inspect(program, folder, "w.npy")[0]
                check_similarity(layer, weights)
                check_heat_map(folder, layer, weights)
            tensors[f"model.layers.{len(tensors)}.mlp.gate.weight"] = weights
        for stored in (weights.astype(">f4"), weights.astype(">f8"), np.asfortranarray(weights),
                       np.asfortranarray(weights.astype(">f2"))):
            np.save(os.path.join(folder, "w.npy"), stored)
            check_similarity(inspect(program, folder, "w.npy")[0], stored)
        write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
        layers = inspect(program, folder, ".")
        assert len(layers) == 3
        for layer, weights in zip(layers, tensors.values()):
            check_similarity(layer, weights)

        # Tokens: loads and the lift of partners, by the definition of the documentation.
        tokens = random.normal(size=(500, 96)).astype(np.float16)
        np.save(os.path.join(folder, "x.npy"), tokens)
        layer = inspect(program, folder, "model.safetensors", "--x", "x.npy", "--top-k", "4")[1]
        weights = tensors["model.layers.1.mlp.gate.weight"]
        logits = tokens.astype(np.float64) @ weights.astype(np.float64).T
        chosen = np.zeros(logits.shape)
        np.put_along_axis(chosen, np.argsort(-logits, axis=1)[:, :4], 1, axis=1)
        together = chosen.T @ chosen
        loads = together.diagonal()
        assert layer["routing"]["load_of_expert"] == loads.astype(int).tolist()
        products = np.outer(loads, loads)
        off_diagonal = ~np.eye(40, dtype=bool)
        scale = together[off_diagonal].sum() / products[off_diagonal].sum()
        pairs = np.arange(40), layer["similarity"]["partner_of_expert"]
        np.testing.assert_allclose(layer["routing"]["partner_lift"],
                                   together[pairs].sum() / (scale * products[pairs].sum()),
                                   rtol=1e-9)

        # The margin of the last expert, and a penalty by the rule of the paper. Both come from
        # histograms with bins of up to 12 %.
        ranked = -np.sort(-logits, axis=1)
        np.testing.assert_allclose(layer["routing"]["median_margin"],
                                   np.median(ranked[:, 3] - ranked[:, 4]), rtol=0.15)
        loses = logits < logits[:, pairs[1]]
        penalised = logits - layer["routing"]["lambda_that_changes"]["10%"] * loses
        again = np.zeros(logits.shape)
        np.put_along_axis(again, np.argsort(-penalised, axis=1)[:, :4], 1, axis=1)
        changed = (again != chosen).any(axis=1).mean()
        assert 0.08 < changed < 0.12, changed

        # What the format allows, but this program does not.
        for bad in (np.asfortranarray(np.stack([weights, weights])), weights.astype(np.int32),
                    weights.astype(np.complex64), weights.astype(object),
                    weights.view([("a", "<f8")]), np.where(weights > 3, np.nan, weights)):
            np.save(os.path.join(folder, "bad.npy"), bad)
            result = subprocess.run([program, "bad.npy"], cwd=folder, capture_output=True,
                                    check=False)
            assert result.returncode == 2 and b"bad.npy: " in result.stderr, result


if __name__ == "__main__":
    main(sys.argv[1])
