"""Fill the marked tables of README.md and docs/performance.md from the result files.

python benchmarks/tables.py            rewrite both
python benchmarks/tables.py --check    fail if one of them is not what the result files say
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import accuracy_tables
import gpu_tables

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS: dict[str, Mapping[str, Callable[[], str]]] = {
    "README.md": {**accuracy_tables.TABLES, "models_summary": gpu_tables.models_summary},
    "docs/performance.md": gpu_tables.TABLES,
}
"""What each table of a document is made by."""


def filled(document: str) -> str:
    """The document's text with every marked table replaced."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for name, make in DOCUMENTS[document].items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- /table -->)"
        made = make()
        text, count = re.subn(pattern, lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"{document} has {count} tables called {name}")
    return text


def write() -> None:
    """Write both documents."""
    for document in DOCUMENTS:
        (ROOT / document).write_text(filled(document), encoding="utf-8")


def main() -> None:
    """Write the documents, or check them."""
    if "--check" not in sys.argv:
        write()
        return
    stale = [document for document in DOCUMENTS if filled(document) != (ROOT / document).read_text(encoding="utf-8")]
    raise SystemExit(f"{' and '.join(stale)} out of date: run python benchmarks/tables.py" if stale else 0)


if __name__ == "__main__":
    main()
