"""Networks of other projects with random weights, and what their own code computes with them.

    pip install -r requirements-bench.txt
    PYTHONPATH=guided-diffusion:flow_matching/examples/image python -m tests.networks.convert.peers

writes peers.npz: the names and shapes of each network's state dict, and its outputs. torchcfm and
diffusers are packages; ADM and flow_matching's U-Net are found in checkouts of their repositories.
"""

import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# TensorFlow, which these projects load where it is installed, may crash beside PyTorch.
os.environ |= {"USE_TF": "0", "USE_FLAX": "0", "POT_BACKEND_DISABLE_TENSORFLOW": "1"}

FILE = Path(__file__).with_name("peers.npz")
SIDE, CHANNELS, CLASSES = 8, 3, 5
VELOCITY_TIMES = (0.0, 0.3, 0.9, 1.0)
STEPS = (0.0, 7.0, 250.0, 999.0)


@dataclass(frozen=True)
class Case:
    """A network of a project.

    Attributes:
        project: the project, a key of KINDS.
        arguments: arguments of its U-Net.
        told: what the file does not tell, as in `Told`.
        labels: whether it is given labels.
        condition: whether it is given a picture beside x.
    """

    project: str
    arguments: dict
    told: dict = field(default_factory=lambda: {"heads": 1})
    labels: bool = False
    condition: bool = False

    @property
    def times(self):
        return np.array(VELOCITY_TIMES if self.project in VELOCITIES else STEPS, np.float32)


VELOCITIES = ("torchcfm", "flow_matching")
ADM = {
    "image_size": SIDE,
    "in_channels": CHANNELS,
    "model_channels": 32,
    "out_channels": CHANNELS,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
}
RESIDUAL = {"use_scale_shift_norm": True, "resblock_updown": True}
LEARNED = {"out_channels": 2 * CHANNELS}
NEW = {"use_new_attention_order": True}
FOUR = {"told": {"heads": 4}}
CASES = {
    "torchcfm": Case("torchcfm", ADM | {"num_heads": 4, "num_res_blocks": 2}, **FOUR),
    "torchcfm_residual": Case(
        "torchcfm",
        ADM | RESIDUAL | {"num_head_channels": 16, "attention_resolutions": (1,)},
        {"head_channels": 16},
    ),
    "torchcfm_averaging": Case(
        "torchcfm", ADM | {"conv_resample": False, "channel_mult": (2, 1, 2)}
    ),
    "torchcfm_classes": Case(
        "torchcfm",
        ADM | NEW | {"num_classes": CLASSES, "num_heads": 2},
        {"heads": 2, "order": "new"},
        labels=True,
    ),
    "adm": Case("adm", ADM | RESIDUAL | LEARNED | {"num_heads": 4}, **FOUR),
    "adm_classes": Case(
        "adm",
        ADM | NEW | RESIDUAL | LEARNED | {"num_classes": CLASSES, "num_head_channels": 32},
        {"head_channels": 32, "order": "new"},
        labels=True,
    ),
    "adm_upsampler": Case(
        "adm",
        ADM | LEARNED | {"num_classes": CLASSES, "num_heads": 4},
        {"heads": 4, "is_conditional": True},
        labels=True,
        condition=True,
    ),
    "flow_matching": Case(
        "flow_matching",
        {name: value for name, value in ADM.items() if name != "image_size"}
        | NEW
        | {"conv_resample": False, "use_scale_shift_norm": True, "channel_mult": (2, 2)},
    ),
    "flow_matching_classes": Case(
        "flow_matching",
        ADM | NEW | RESIDUAL | {"num_classes": CLASSES, "num_heads": 4},
        **FOUR,
        labels=True,
    ),
}
DIFFUSERS = {
    "sample_size": SIDE,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# As google/ddpm-cifar10-32 and its siblings.
DDPM = {"downsample_padding": 0, "freq_shift": 1, "norm_eps": 1e-6, "flip_sin_to_cos": False}
CASES |= {
    "diffusers": Case("diffusers", DIFFUSERS, {"head_channels": 8}),
    "diffusers_ddpm": Case("diffusers", DIFFUSERS | DDPM, {"head_channels": 8, "settings": DDPM}),
    "diffusers_classes": Case(
        "diffusers",
        DIFFUSERS
        | {
            "flip_sin_to_cos": False,
            "num_class_embeds": CLASSES,
            "attention_head_dim": 16,
        },
        {"head_channels": 16, "settings": {"flip_sin_to_cos": False}},
        labels=True,
    ),
}


def weights(shapes):
    """Random weights that depend on their names alone, for outputs of about unit size."""

    def draw(name, shape):
        values = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
        if len(shape) == 1:
            return 0.1 * values + (name.endswith("weight"))
        return values / np.sqrt(np.prod(shape[1:]))

    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


def inputs(case):
    """x [B, H, W, C], and what else the network is given, in this package's shapes."""
    rng = np.random.RandomState(0)
    size = (len(case.times), SIDE, SIDE, CHANNELS)
    x, condition = (rng.randn(*size).astype(np.float32) for _ in range(2))
    given = {"label": np.array([0, 3, 1, CLASSES - 1])} if case.labels else {}
    return x, given | ({"condition": condition} if case.condition else {})


def recorded():
    """The record: case -> (shapes by name, output [B, H, W, C], its error in bfloat16)."""
    with np.load(FILE) as held:
        facts = json.loads(str(held["facts"]))
        return {name: (shapes, held[name], error) for name, (shapes, error) in facts.items()}


def relative_error(x, reference):
    """Root mean square of the error, in units of that of the reference."""
    return float(np.sqrt(np.mean((x - reference) ** 2) / np.mean(reference**2)))


def network_of(case):
    """The network by the project's own code."""
    if case.project == "flow_matching":
        from models.unet import UNetModel  # of examples/image

        return UNetModel(**case.arguments)
    if case.project == "adm":
        from guided_diffusion.unet import SuperResModel, UNetModel

        return (SuperResModel if case.condition else UNetModel)(**case.arguments)
    if case.project == "diffusers":
        from diffusers import UNet2DModel

        return UNet2DModel(**case.arguments)
    from torchcfm.models.unet.unet import UNetModel

    return UNetModel(**case.arguments)


def computed(case, dtype="float32"):
    """The network's state dict shapes, and its output for `inputs` in a dtype, float32."""
    import torch

    network = network_of(case).eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = {name: torch.from_numpy(value) for name, value in weights(shapes).items()}
    if case.project == "flow_matching" and case.labels:
        state["label_emb.weight"][-1] = 0  # as in each network that they train: no class
    network.load_state_dict(state)
    to_torch = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)  # noqa: E731
    x, given = inputs(case)
    t, x = torch.from_numpy(case.times), to_torch(x)
    label = torch.from_numpy(given["label"]) if case.labels else None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        if case.project == "flow_matching":
            output = network(x, t, {"label": label} if case.labels else {})
        elif case.project == "torchcfm":
            output = network(t, x, label)
        elif case.project == "diffusers":
            output = network(x, t, label).sample
        elif case.condition:
            output = network(x, t, y=label, low_res=to_torch(given["condition"]))
        else:
            output = network(x, t, y=label)
    return shapes, output.float()[:, :CHANNELS].permute(0, 2, 3, 1).numpy()


def main():
    facts, outputs = {}, {}
    for name, case in CASES.items():
        shapes, outputs[name] = computed(case)
        _, rounded = computed(case, "bfloat16")
        facts[name] = shapes, relative_error(rounded, outputs[name])
    np.savez_compressed(FILE, facts=json.dumps(facts), **outputs)
    for name, (_, error) in facts.items():
        print(f"{name}: relative error in bfloat16 {error:.2e}")


if __name__ == "__main__":
    main()
