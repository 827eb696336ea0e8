"""A hook of mkdocs: name the files of the repository that a page links to and that the site does not hold.

On GitHub a link such as `../benchmarks/README.md` opens the file. The site holds `docs/` only, so the link becomes its
text and the file's name.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

_DOCS = Path(__file__).resolve().parent
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page's text without links to files outside docs/."""
    folder = (_DOCS / PurePosixPath(page.file.src_uri)).parent

    def named(link: re.Match[str]) -> str:
        text, target = link.groups()
        path = (folder / target).resolve()
        if path.is_relative_to(_DOCS):
            return link[0]
        name = f"`{path.relative_to(_DOCS.parent).as_posix()}`"
        return text if name == text else f"{text} ({name} in the repository)"

    return _LINK.sub(named, markdown)
