"""Split the text of a control file into commands and words, quoted as POSIX shells and `shlex` quote.

One pass of a regular expression, because a hostile line may be a megabyte
long and `shlex` takes a microsecond a character.
"""

import re
from errno import EINVAL

_PIECE = re.compile(
    r"""
    (?P<plain>[^\s'"\\]+ | [^\S \t\r\n]+)   # only the four ASCII blanks separate words
  | (?P<blank>[ \t\r]+)
  | (?P<end>\n)
  | '(?P<single>[^']*)'
  | "(?P<double>(?:[^"\\]|\\.)*)"
  | \\(?P<escaped>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_IN_DOUBLE = re.compile(r'\\(["\\])')


def split_commands(text: str) -> tuple[list[list[str]], str]:
    """Return the words of every complete line of `text`, and the tail after the last line's end.

    A newline inside quotes or after a backslash belongs to its word, so a tail may hold several lines. Empty
    lines give nothing. The tail is "" when the text ends with a newline.
    """
    commands: list[list[str]] = []
    words: list[str] = []
    word: list[str] | None = None
    line_start = pos = 0
    while pos < len(text):
        match = _PIECE.match(text, pos)
        if match is None:
            break
        pos = match.end()
        kind = match.lastgroup
        if kind == "blank" or kind == "end":
            if word is not None:
                words.append("".join(word))
                word = None
            if kind == "end":
                if words:
                    commands.append(words)
                    words = []
                line_start = pos
            continue
        if word is None:
            word = []
        piece = match[kind] if kind else ""
        word.append(_IN_DOUBLE.sub(r"\1", piece) if kind == "double" else piece)
    return commands, text[line_start:]


def split_line(text: str) -> list[str]:
    """Return the words of one command without its newline. EINVAL where a quote or backslash is left open."""
    commands, tail = split_commands(text + "\n")
    if tail:
        raise OSError(EINVAL, "no closing quotation")
    return [word for command in commands for word in command]


def quote(word: str) -> str:
    """Quote a word so that `split_line` gives it back."""
    if word and re.fullmatch(r"[\w@%+=:,./#!-]+", word, re.ASCII):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"
