"""What the README and docs/ tell a reader to type and to write."""

import re

from program import ROOT

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = FILES[0].read_text()

#: The blocks of shell commands, and where each stands.
SHELL = [
    (file, block)
    for file in FILES
    for block in re.findall(r"```sh\n(.*?)```", file.read_text(), re.DOTALL)
]

#: The files of a network, a task and a loss of one's own, by the path that stands above each.
MINE = dict(
    re.findall(
        r"\n`(mine/[\w/.]+)`\n\n```\w+\n(.*?)```",
        (ROOT / "docs/your-own.md").read_text(),
        re.DOTALL,
    )
)
