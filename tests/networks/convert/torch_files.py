"""Files as torch.save writes them, assembled by hand, so that no test needs PyTorch."""

import io
import pickle
import zipfile
from pathlib import Path

from absl.testing import parameterized

STORAGES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "bool": "Bool",
}
DICT = b"ccollections\nOrderedDict\n)R"
METADATA = pickle.dumps({"_metadata": {}}, 2)[2:-1] + b"b"  # as net.state_dict() has it


class FileTestCase(parameterized.TestCase):
    """Writes bytes to a file."""

    def file(self, data):
        path = Path(self.create_tempdir().full_path) / "weights.pth"
        path.write_bytes(data)
        return path


class Global:
    """Pickled as a reference to a global, which need not exist."""

    def __init__(self, module, name):
        self.text = f"{module}\n{name}\n".encode()


class Storage:
    def __init__(self, array, key):
        self.array, self.key = array, key


class Call:
    """Pickled as a call of a global."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


def pickled(value, legacy=False):
    """Opcodes of protocol 2 that build a value."""

    def build(x):
        if isinstance(x, Global):
            return b"c" + x.text
        if isinstance(x, Storage):
            kind = Global("torch", f"{STORAGES[x.array.dtype.name]}Storage")
            pid = ("storage", kind, x.key, "cpu", x.array.size)
            return build((*pid, None) if legacy else pid) + b"Q"
        if isinstance(x, Call):
            return build(x.function) + build(x.arguments) + b"R"
        if isinstance(x, tuple):
            return b"(" + b"".join(map(build, x)) + b"t"
        if isinstance(x, dict):
            return (
                DICT + b"(" + b"".join(build(k) + build(v) for k, v in x.items()) + b"u" + METADATA
            )
        return pickle.dumps(x, 2)[2:-1]  # without protocol and stop

    return b"\x80\x02" + build(value) + b"."


def tensor(storage, key, shape=None, strides=None, offset=0):
    """A tensor over a storage, of its shape and contiguous where not told otherwise."""
    if strides is None:
        strides = tuple(stride // storage.itemsize for stride in storage.strides)
    shape = storage.shape if shape is None else shape
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, Storage(storage, key), offset, shape, strides, False, {})


def as_zip(value, storages):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return file.getvalue()


def as_legacy(value, storages, little_endian=True):
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    parts = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts += [pickled(value, legacy=True), pickle.dumps(list(storages), 2)]
    for array in storages.values():
        parts += [array.size.to_bytes(8, "little"), array.tobytes()]
    return b"".join(parts)


def saved(state, write=as_zip):
    """The bytes of a state dict, arrays by name."""
    storages = {str(i): array for i, array in enumerate(state.values())}
    tensors = {name: tensor(array, str(i)) for i, (name, array) in enumerate(state.items())}
    return write(tensors, storages)
