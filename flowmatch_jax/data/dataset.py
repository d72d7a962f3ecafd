"""The interface of a dataset split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.workdir import same_data

CHECKED = 1000  # items whose values are looked at


class Images(Protocol):
    """Images by index: an array uint8 [N, H, W, C], or an object that decodes images on access."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Items:
    """Some items of an array that may be in a file: items[i] is array[chosen[i]].

    The index may be an array of them, which is much faster than one by one.
    """

    array: np.ndarray
    chosen: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self.array.shape[1:]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int | np.ndarray) -> np.ndarray:
        return np.asarray(self.array[self.chosen[i]])


@dataclass(frozen=True)
class Dataset:
    """A split of a dataset. ``source[i]`` is {"x": ..., "label": ...}.

    Attributes:
        name, version, split: identify the data.
        x: images uint8 [N, H, W, C] with values in [0, levels), or points float32 [N, D]; of pairs
            (see `pairs`) samples in model space, float32 [N, ...].
        label: int32 [N] in [0, num_classes), or None.
        levels: grey levels of images; None for points and for pairs.
        num_classes: number of classes; None without labels.
        log_density: log-density of points where it is known, [N, D] -> [N] in nats.
        sha256: hash of the content where it is already known (prepared datasets and folders).
        classes: names of the classes, where they are known.
        x0: where the items come in pairs, the starting point of each x: the noise of a sample,
            float32 [N, ...], or an item of another dataset, as it is stored there.
    """

    name: str
    version: str
    split: str
    x: np.ndarray | Images | Items
    label: np.ndarray | None = None
    levels: int | None = None
    num_classes: int | None = None
    log_density: Callable[[np.ndarray], np.ndarray] | None = None
    sha256: str | None = None
    classes: tuple[str, ...] | None = None
    x0: np.ndarray | Items | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item's x."""
        return tuple(self.x.shape[1:])

    @property
    def is_image(self) -> bool:
        return self.levels is not None

    @cached_property
    def entropy(self) -> float | None:
        """The mean negative log-likelihood of these points under their own density, in nats."""
        return None if self.log_density is None else -float(np.mean(self.log_density(self.x)))

    @cached_property
    def content_hash(self) -> str:
        """The sha256 of the content; equal for equal data."""
        return self.sha256 or hashlib.sha256(np.ascontiguousarray(self.x)).hexdigest()

    def validate(self) -> None:
        """Raise UserError unless items and labels are of the kind that the attributes describe.

        Of arrays, values of up to CHECKED items are looked at, evenly spaced.
        """
        self._require(hasattr(self.x, "shape"), "x is an array, or images with a shape")
        self._require(len(self) > 0, "it is empty")
        if self.label is not None:
            is_integers = isinstance(self.label, np.ndarray) and self.label.dtype.kind in "iu"
            self._require(is_integers, "its labels are an array of integers")
            self._require(self.label.shape == (len(self),), "it has a label for each item")
            known = self.num_classes is not None and len(self) > 0
            inside = known and self.label.min() >= 0 and self.label.max() < self.num_classes
            self._require(inside, "its labels are in [0, num_classes)")
        if not isinstance(self.x, np.ndarray):
            return
        some = self.x[:: max(1, len(self) // CHECKED)]
        if self.is_image:
            self._require(self.x.ndim == 4, "images have shape [N, H, W, C]")
            self._require(self.x.dtype == np.uint8, "images with levels are uint8, 0 to levels - 1")
            self._require(some.max() < self.levels, f"it has {self.levels} levels, 0 and up")
        else:
            self._require(self.x.ndim == 2, "points have shape [N, D]; images need levels")
            self._require(self.x.dtype == np.float32, "points are float32")
            self._require(bool(np.isfinite(some).all()), "points are finite")

    def _require(self, true: bool, expected: str) -> None:
        if not true:
            is_array = isinstance(self.x, np.ndarray)
            got = f"{self.x.dtype} {self.x.shape}" if is_array else f"{len(self)} items"
            raise UserError("name", f"{self.name}, {self.split} split: {got}", expected)

    def facts(self) -> dict[str, Any]:
        """Return the record of the data for a run and `RecordedDataset`, as JSON values."""
        return {
            "name": self.name,
            "version": self.version,
            "split": self.split,
            "items": len(self),
            "sha256": self.content_hash,
            "shape": list(self.shape),
            "levels": self.levels,
            "num_classes": self.num_classes,
            "classes": None if self.classes is None else list(self.classes),
            "label_counts": self.label_counts,
        }

    @cached_property
    def label_counts(self) -> list[int] | None:
        """The number of items of each class; None without labels."""
        if self.label is None:
            return None
        return np.bincount(self.label, minlength=self.num_classes).tolist()

    def zeros(self, n: int) -> dict[str, np.ndarray]:
        """Return a batch of n zero items with the dataset's shapes and dtypes."""
        batch = zeros(n, self.shape, self.is_image, self.label is not None)
        if self.x0 is None:
            return batch
        return batch | {"x0": np.zeros((n, *self.shape), self.x0[:1].dtype)}

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        item = {"x": self.x[i]}
        return item if self.label is None else {**item, "label": self.label[i]}


class Splits(NamedTuple):
    """The two splits of a dataset."""

    train: Dataset | RecordedDataset
    test: Dataset | RecordedDataset


def zeros(
    n: int, shape: tuple[int, ...], is_image: bool, has_labels: bool
) -> dict[str, np.ndarray]:
    """Return a batch of n zero items with this shape: bytes for images, float32 for points."""
    x = np.zeros((n, *shape), np.uint8 if is_image else np.float32)
    return {"x": x, "label": np.zeros(n, np.int32)} if has_labels else {"x": x}


def check_label(field: str, label: int, data: Dataset | RecordedDataset) -> None:
    """Raise UserError unless the data have items of this class."""
    if label not in range(data.num_classes):
        raise UserError(field, label, f"the labels of {data.name} are 0 to {data.num_classes - 1}")
    if not data.label_counts[label]:
        allowed = f"the model was trained on no {data.name} of this class (config.data.classes)"
        raise UserError(field, label, allowed)


def described(
    name: str, version: str | None, split: str, shape: tuple[int, ...], classes: int | None
) -> dict[str, Any]:
    """Return facts for `RecordedDataset` of images with 256 levels of which nothing else is known.

    Args:
        name, version, split: as in `Dataset`.
        shape: shape of an image.
        classes: number of classes, if the images have any.
    """
    facts = {"name": name, "version": version, "split": split, "items": None, "sha256": None}
    counts = None if classes is None else [1] * classes  # as if they were equally frequent
    kind = {"num_classes": classes, "classes": None, "label_counts": counts}
    return facts | {"shape": list(shape), "levels": 256} | kind


class RecordedDataset:
    """A dataset described by the record of a run, and opened when its items are needed.

    It replaces a `Dataset`: shape, levels and classes come from the record, so that a trained model
    can draw samples even if its training set is not available. If the record is `described`, any
    dataset of that shape may be opened.

    Args:
        facts: result of `Dataset.facts`.
        open_dataset: opens the dataset.
        field: field of the config that names the dataset, for errors.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        open_dataset: Callable[[], Dataset],
        field: str = "config.data",
    ) -> None:
        self._facts, self._open, self._field = facts, open_dataset, field
        self.name, self.version, self.split = facts["name"], facts["version"], facts["split"]
        self.shape, self.levels = tuple(facts["shape"]), facts["levels"]
        n = self.num_classes = facts["num_classes"]
        # A record without counts is older: as if the classes were equally frequent.
        self.label_counts = facts.get("label_counts") or (n and [1] * n)
        self.classes, self.x0 = facts["classes"] and tuple(facts["classes"]), None

    @property
    def is_image(self) -> bool:
        return self.levels is not None

    @property
    def content_hash(self) -> str:
        """The sha256 of the content."""
        return self._facts["sha256"] or self.opened.content_hash

    def facts(self) -> dict[str, Any]:
        """Return the record."""
        return self._facts

    def zeros(self, n: int) -> dict[str, np.ndarray]:
        """Return a batch of n zero items with the dataset's shapes and dtypes."""
        return zeros(n, self.shape, self.is_image, self.num_classes is not None)

    @cached_property
    def opened(self) -> Dataset:
        """The dataset itself.

        Raises:
            UserError: it is not available, or differs from the one that the run was trained on.
        """
        dataset = self._open()
        if not same_data(self._facts, dataset.facts()):
            allowed = f"the run has other {self.name} data (version {self.version}): give those"
            raise UserError(self._field, f"{dataset.name} {dataset.version}", allowed)
        return dataset

    def __len__(self) -> int:
        return len(self.opened) if self._facts["items"] is None else self._facts["items"]

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self.opened[i]

    def __getattr__(self, name: str) -> Any:
        if name in ("x", "label", "log_density", "entropy"):
            return getattr(self.opened, name)
        raise AttributeError(name)
