"""Folders of runs as training and evaluation leave them, with invented numbers."""

import copy
import json

import jax
import numpy as np

from flowmatch_jax.evaluation.samples import sample_key

CONFIG = {
    "seed": 0,
    "data": {"name": "digits"},
    "path": {"name": "ot"},
    "objective": {"name": "flow_matching"},
    "train": {"steps": 100, "batch_size": 8},
    "solver": {"method": "dopri5"},
    "evaluate": {"seed": 1},
    "figures": {},
    "mesh": {},
}
RECORD = {
    "step": 100,
    "evaluation_seed": 1,
    "data": {"name": "digits", "version": "1", "split": "test", "levels": 17, "entropy": None},
    "solver": {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "steps": None, "grid": "uniform"},
    "likelihood": {
        "batch_size": 9,
        "images": 297,
        "dequantisations": [1],
        "divergence": "hutchinson",
        "probes": 1,
    },
    "samples": {"batch_size": 64},
    "frechet": {
        "extractor": "pixels",
        "generated": 500,
        "reference": {"split": "train", "images": 1500, "sha256": "ab"},
    },
    "dtype": "float32",
}
POINTS = {"name": "checkerboard", "version": "1", "split": "test", "levels": None, "entropy": 3.5}
FIGURES = {"step": 100, "weights": "ema", "extractor": "pixels", "seeds": 4, "generated": 500}


CONDITION = {"labels": False, "low_resolution": 4, "filter": "bicubic"}
BASELINES = {
    "Reference": {"fd_pixels": 0.1, "sample_nfe": 0.0},
    "Bicubic": {"fd_pixels": 9.0, "sample_nfe": 0.0, "psnr": 13.0, "consistency_rmse": 1.5},
}


def super_resolved(fd=0.5, psnr=20.0, nfe=40.0):
    """What a super-resolution run measures of 8 x 8 images, which have no SSIM."""
    pairs = {"psnr": psnr, "psnr_standard_error": 0.1, "ssim": None, "consistency_rmse": 0.5}
    return {"fd_pixels": fd, "sample_nfe": nfe, **pairs}


def scores(bits=2.0, fd=0.5, nfe=40.0, k=1):
    name = f"bits_per_dim_k{k}"
    return {name: bits, f"{name}_standard_error": 0.1, "fd_pixels": fd, "sample_nfe": nfe}


def changed(tree, **fields):
    """A copy with fields set; the path to one is written a__b."""
    tree = copy.deepcopy(tree)
    for path, value in fields.items():
        *sections, name = path.split("__")
        node = tree
        for section in sections:
            node = node[section]
        node[name] = value
    return tree


def write_run(workdir, config=CONFIG, records=None, rates=(10.0, 400.0, 200.0)):
    """config.json, metrics.jsonl and, unless records is empty, an evaluation."""
    workdir.mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(config))
    lines = [json.dumps({"step": i, "images_per_second": rate}) for i, rate in enumerate(rates)]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    records = [RECORD | {"results": {"ema": scores()}}] if records is None else records
    if records:
        (workdir / "evaluation").mkdir()
        file = workdir / "evaluation" / f"{records[0]['step']}.json"
        file.write_text(json.dumps({"step": records[0]["step"], "evaluations": records}))
    return workdir


def write_figures(workdir, points=False, super_resolution=False, flow=True, **settings):
    """What `draw_figures` leaves for the report."""
    folder = workdir / "figures"
    folder.mkdir()
    figures = FIGURES | ({"extractor": None} if points else {}) | settings
    (folder / "figures.json").write_text(json.dumps(figures))
    fd = "" if points else ",fd_pixels"
    value = "" if points else ",0.7"
    (folder / "over_training.csv").write_text(f"step,nfe{fd}\n50,20{value}\n100,30{value}\n")
    (folder / "over_nfe.csv").write_text(
        f"method,nfe,mean_squared_error{fd}\neuler,4,0.1{value}\nmidpoint,4,0.01{value}\n"
        f"midpoint,8,0.001{value}\n"
    )
    shape = (50, 2) if points else (8, 4, 4, 1)
    x = np.random.RandomState(0).randn(9, *shape)
    if super_resolution:
        rows = ("low resolution", "bicubic", "sample", "original")
        np.savez(folder / "super_resolution.npz", **dict(zip(rows, x[:4], strict=True)))
    if not flow:
        (folder / "over_nfe.csv").unlink()
        return
    np.savez(folder / "sample_paths.npz", t=np.linspace(0, 1, 9), x=x)
    np.savez(folder / "samples_nfe.npz", nfe=np.array([4, 8]), x=x[:2])


def source_key(seed, batch=0):
    """The key of the noise that a batch of samples starts from."""
    return jax.random.split(sample_key(seed, batch))[0]
