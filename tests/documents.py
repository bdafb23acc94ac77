"""What the README and docs/ tell a reader to type and to write."""

import itertools
import re
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from program import ROOT

FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = FILES[0].read_text()

#: The files of a network, a task and a loss of one's own, by the path that stands above each.
MINE = dict(
    re.findall(
        r"\n`(mine/[\w/.]+)`\n\n```\w+\n(.*?)```",
        (ROOT / "docs/your-own.md").read_text(),
        re.DOTALL,
    )
)

#: A fenced block with its language, or code within a sentence.
PIECE = re.compile(r"^```(\w*)\n(.*?)^```|`([^`]+)`", re.DOTALL | re.MULTILINE)
#: A line of a block, with those that a backslash at its end joins to it.
LINE = re.compile(r"(?:.*\\\n)*.+")
#: Code that begins so, and goes on, is a command.
PROGRAMS = (
    "python", "python3", "seqlab", "make", "tensorboard", "pip", "uv", "torchrun", "sbatch",
    "srun", "pytest", "git", "docker", "source", ".", "mkdir", "cp", "export", "nohup",
)  # fmt: skip


def typed(file: Path) -> list[tuple[str, str]]:
    """What a reader of a text types, in its order: ("python", a block), ("sh", a command of a
    block) or ("inline", a command in a sentence). What stands in both is one command."""
    found = {}
    for language, block, inline in PIECE.findall(file.read_text()):
        inline = " ".join(inline.replace("\\|", "|").split())
        program, _, rest = inline.partition(" ")
        if language == "python" and block not in MINE.values():
            found[block] = "python"
        elif language == "sh":
            lines = (line.partition("  #")[0].strip() for line in LINE.findall(block))
            found |= {line: "sh" for line in lines if line}
        elif rest and program.rpartition("/")[2] in PROGRAMS:
            found.setdefault(inline, "inline")
    return [(kind, text) for text, kind in found.items()]


def choices(command: str) -> list[str]:
    """The commands for which one with `[WORDS]` and `this|that` stands: without the words and with
    them, and with each of the choices."""
    optional = re.compile(r" \[([^\]]+)\]")
    forms = [optional.sub("", command), optional.sub(r" \1", command)]
    found = []
    for form in dict.fromkeys(forms):
        words = [word.split("|") for word in form.split(" ")]
        found += map(" ".join, itertools.product(*words)) if "|" in form else [form]
    return found


def overrides() -> list[str]:
    """Every setting that stands within a sentence, KEY=VALUE or several of them."""
    setting = re.compile(r"'?[\w./]+=[^ ]+(?: [\w./]+=[^ ]+)*")
    inline = [
        " ".join(piece[2].split()) for file in FILES for piece in PIECE.findall(file.read_text())
    ]
    return list(dict.fromkeys(text for text in inline if setting.fullmatch(text)))


def one_of_each(words: list[str]) -> list[str]:
    """Overrides with the first of the values that a multirun or a search gives a key."""
    first = []
    for override in OverridesParser.create().parse_overrides(words):
        sweep, word = override.value(), override.input_line
        if override.is_sweep_override():
            ends = isinstance(sweep, IntervalSweep)
            value = sweep.start if ends else next(override.sweep_string_iterator())
            word = f"{override.get_key_element()}={value}"
        first.append(word)
    return first
