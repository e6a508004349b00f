"""Where the answer of an evaluation goes: the answer to another question is never replaced."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnistfast.data.sources import NAMES, anywhere
from mnistfast.options.commands import EvaluateOptions
from mnistfast.runs.checkpoint import BEST

UNSAFE = re.compile(r"[^\w.,=-]")  # in a folder's name; "+" parts its words
LONGEST = 120  # bytes, of the 255 that a name may have


def evaluation_folder(
    checkpoints: Sequence[Path], data: str, options: EvaluateOptions, of_run: Mapping[str, Any]
) -> Path:
    """Returns the folder beside the first checkpoint for the answer to what was asked.

    It is `evaluate-<data>` for the best weights, asked as the run itself was. What else was asked is added to it:
    `evaluate-mnist+last`, `evaluate-mnist+tta1`. A digest settles what words do not, such as which folder is called B
    in `evaluate-mnist+with-B+8c6f01d2`.

    Args:
        checkpoints: what answers.
        data: the name of the data set.
        options: what was asked.
        of_run: `run_folder.data_of_run` of the first checkpoint.
    """
    first, *others = checkpoints
    words, settled_by = [data], []
    if first.name != BEST:
        words.append(first.name.removesuffix(".safetensors"))
    if options.data is not None:
        spec = anywhere(options.data)
        if spec not in NAMES and spec != of_run.get("data"):
            settled_by.append(spec)  # folders of one name may lie in many places
    classes = options.classes or (of_run.get("classes") if options.data is None else None)
    if classes != of_run.get("classes"):
        words.append(f"classes-{classes}" if classes else "all-classes")
    if options.resize not in (None, of_run.get("resize")):
        words.append(f"resize{options.resize}")
    if options.gray and not of_run.get("gray"):
        words.append("gray")
    words += [f"{name}{value}" for name, value in (("head", options.head), ("tta", options.tta)) if value]
    words += [f"with-{path.parent.resolve().name}" for path in others]
    settled_by += [str(path.resolve()) for path in others]
    return first.parent / f"evaluate-{_name(words, settled_by)}"


def _name(words: list[str], settled_by: list[str]) -> str:
    """Returns a name that is one for these arguments alone, and safe: users' names may hold anything of any length."""
    said = "+".join(words)
    name = "+".join(UNSAFE.sub("_", word) for word in words).encode()[:LONGEST].decode(errors="ignore")
    if name == said and not settled_by:
        return name
    everything = "\0".join([said, *settled_by]).encode(errors="surrogateescape")
    return f"{name}+{hashlib.sha256(everything).hexdigest()[:8]}"
