"""Read the documentation: its fenced blocks, the commands in them, its links and the anchors of its headings."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Every page that a person reads: the site, and the files at the root of the repository.
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
#: Blocks of these languages hold commands: `console` has a prompt before each and their output, `sh` has neither.
SHELLS = ("sh", "console")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
_OPERATORS = frozenset({"&&", "||", "|", ";", "&", "(", ")"})
_REDIRECTION = re.compile(r"^[<>]+&?$")
_ASSIGNMENT = re.compile(r"^\w+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a block, perhaps over several lines."""

    place: str
    text: str

    def segments(self):
        """Return the words of each program that the command starts, without assignments and redirections."""
        lexer = shlex.shlex(self.text.replace("\\\n", " "), posix=True, punctuation_chars="();<>|&")
        lexer.wordchars += "$=~:@,%[]{}!^"
        found, words, skips = [], [], False
        for token in [*lexer, ";"]:
            if token in _OPERATORS:
                found.append(words)
                words = []
            elif _REDIRECTION.match(token):
                skips = True
            elif skips:
                skips = False
            elif words or not _ASSIGNMENT.match(token):
                words.append(token)
        return [[Path(words[0]).name, *words[1:]] for words in found if words]


@cache
def blocks(page):
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start()) + 1,
            found["language"].strip(),
            re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
        )
        for found in _FENCE.finditer(text)
    ]


@cache
def without_blocks(page):
    """Return a page's text with every line of its fenced blocks empty, so that line numbers stay."""
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text())


def commands(block):
    """Yield the commands of a shell block, with the line of each; comments and outputs are left out."""
    pending, begins, is_output = "", 0, block.language == "console"
    for number, line in enumerate(block.text.splitlines(), start=block.line + 1):
        if not pending:
            begins = number
            if is_output and not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        pending += line + "\n"
        if not _is_complete(pending):
            continue
        if shlex.split(pending, comments=True):
            yield Command(f"{block.page.relative_to(ROOT)}:{begins}", pending.strip())
        pending = ""
    assert not pending, f"{block.place}: a quote is not closed"


def _is_complete(text):
    if text.endswith("\\\n"):
        return False
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def inline_commands(page):
    """Yield the commands of this project in a page's sentences, such as `flux2 wait ID...`, as (line, words)."""
    text = without_blocks(page)
    for found in re.finditer(r"`((?:\.venv/bin/)?(?:flux2|make|python -m|pytest) [^`]+)`", text):
        words = shlex.split(found[1].replace("\n", " "), comments=True)
        yield text.count("\n", 0, found.start()) + 1, [Path(words[0]).name, *words[1:]]


@cache
def links(page):
    """Return the targets of a page's links and pictures, outside of its blocks and of code in a line."""
    text = re.sub(r"`[^`\n]*`", "", without_blocks(page))
    return re.findall(r"(?<!\\)\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text)


@cache
def headings(page):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    found = set()
    for title in re.findall(r"^#+ +(.+?) *#*$", without_blocks(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("\\", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        found |= {slug, re.sub("-+", "-", slug)}
    return found
