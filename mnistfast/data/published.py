"""The published sets as facts: names of files, hashes, classes, and where they can be fetched. No code of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

DIGITS = tuple("0123456789")
UPPER, LOWER = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), tuple("abcdefghijklmnopqrstuvwxyz")
MERGED = (*DIGITS, *UPPER, *"abdefghnqrt")
"""EMNIST's 47 classes, in which small letters that look like their capitals are one class with them."""

ROLES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "test-images": "t10k-images-idx3-ubyte",
    "test-labels": "t10k-labels-idx1-ubyte",
}
"""The four files of an MNIST-like set, by what they hold, under the names that MNIST gave them."""


@dataclass(frozen=True)
class IdxSet:
    """A published set of four IDX files.

    Attributes:
        classes: the name of each label.
        mirrors: addresses of the folders with the files, in the order to ask.
        md5: of each file's content, uncompressed, by role: mirrors compress differently, the content is one.
        served_md5: of each .gz as it is served; for a set whose content's hashes we do not have.
        folders: where distributions install it.
        archive: name and MD5 of the one file that holds all, where they are not served one by one.
        files: the names of the four files by role.
        first_label: what the files call the first class.
        transposed: the files hold columns where rows belong.
    """

    classes: tuple[str, ...]
    mirrors: tuple[str, ...]
    md5: dict[str, str] = field(default_factory=dict)
    served_md5: dict[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    archive: tuple[str, str] | None = None
    files: dict[str, str] = field(default_factory=lambda: ROLES)
    first_label: int = 0
    transposed: bool = False


def _emnist(split: str, classes: tuple[str, ...], first_label: int = 0) -> IdxSet:
    return IdxSet(
        classes,
        ("https://biometrics.nist.gov/cs_links/EMNIST/",),  # its only home
        archive=("gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e"),
        files={role: f"emnist-{split}-{name.replace('t10k', 'test')}" for role, name in ROLES.items()},
        first_label=first_label,
        transposed=True,
    )


SETS = {
    "mnist": IdxSet(
        DIGITS,
        # Its first home, yann.lecun.com, refuses downloads and is not asked.
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        md5={
            "train-images": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels": "a25bea736e30d166cdddb491f175f624",
            "test-images": "2646ac647ad5339dbf082846283269ea",
            "test-labels": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "fashion-mnist": IdxSet(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        (
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        md5={
            "train-images": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels": "9018921c3c673c538a1fc5bad174d6f9",
            "test-images": "8181f5470baa50b63fa0f6fddb340f0a",
            "test-labels": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        folders=("/usr/share/datasets/fashion-mnist",),  # Debian's dataset-fashion-mnist
    ),
    "kmnist": IdxSet(
        ("お", "き", "す", "つ", "な", "は", "ま", "や", "れ", "を"),
        ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/"),
        served_md5={
            "train-images": "bdb82020997e1d708af4cf47b453dcf7",
            "train-labels": "e144d726b3acfaa3e44228e80efcd344",
            "test-images": "5c965bf0a639b31b8f53240b1b52f4d7",
            "test-labels": "7320c461ea6c1c855c0b718fb2a4b134",
        },
    ),
    "emnist-balanced": _emnist("balanced", MERGED),
    "emnist-bymerge": _emnist("bymerge", MERGED),
    "emnist-byclass": _emnist("byclass", (*DIGITS, *UPPER, *LOWER)),
    "emnist-digits": _emnist("digits", DIGITS),
    "emnist-letters": _emnist("letters", LOWER, first_label=1),
    "emnist-mnist": _emnist("mnist", DIGITS),
}

EMNIST_BYTES = 600 << 20
"""What EMNIST's archive may be long; it has 562 MB."""

CIFAR10_BYTES = 200 << 20
"""What CIFAR-10's archive may be long; it has 170 MB."""

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_ARCHIVE = ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
CIFAR10_MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/",
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
)
