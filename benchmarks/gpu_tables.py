"""How the tables about GPUs that were not there are kept: a JSON file with a row a line, and Markdown to read."""

import json
from pathlib import Path
from typing import Any

import triton


def keep(folder: Path, name: str, table: list[dict[str, Any]], markdown: str) -> None:
    """Write FOLDER/NAME.json, which says that nothing was measured and by which Triton it was compiled, and NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"measured": False, "triton": triton.__version__})
    lines = ",\n".join(json.dumps(row) for row in table)
    (folder / f"{name}.json").write_text(f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')
    (folder / f"{name}.md").write_text(markdown)
