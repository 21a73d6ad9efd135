"""vfs.words splits as shlex splits, a megabyte at a time."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfs.words import quote, split_commands, split_line

TEXT = st.text(alphabet="ab'\"\\ \t\n\r#é\x85", max_size=40)


@settings(derandomize=True, max_examples=500)
@given(TEXT.map(lambda text: text.replace("\n", " ")))
def test_a_line_splits_as_shlex_does(text):
    try:
        expected = shlex.split(text)
    except ValueError:
        with pytest.raises(OSError, match="quotation"):
            split_line(text)
    else:
        assert split_line(text) == expected


@settings(derandomize=True, max_examples=500)
@given(st.lists(st.lists(st.text(max_size=12).filter(lambda word: "\x00" not in word), min_size=1), max_size=6))
def test_quoted_commands_come_back(commands):
    text = "".join(" ".join(map(quote, words)) + "\n" for words in commands)
    assert split_commands(text) == (commands, "")


@settings(derandomize=True, max_examples=300)
@given(TEXT, st.integers(0, 40))
def test_a_split_write_gives_the_same_commands(text, place):
    whole, tail = split_commands(text)
    first, rest = split_commands(text[:place])
    second, end = split_commands(rest + text[place:])
    assert (first + second, end) == (whole, tail)


def test_a_newline_in_quotes_belongs_to_its_word():
    assert split_commands("cmd 'a\nb' c\nstart\nki") == ([["cmd", "a\nb", "c"], ["start"]], "ki")


def test_empty_words_and_empty_lines():
    assert split_commands("\n  \ncmd '' \"\"\n") == ([["cmd", "", ""]], "")


def test_only_ascii_blanks_separate():
    assert split_line("a\x0bb\u00a0c \u2003d") == ["a\x0bb\u00a0c", "\u2003d"]


def test_a_megabyte_without_a_closing_quote_is_one_tail():
    text = "cmd '" + "x" * (1 << 20)
    assert split_commands(text) == ([], text)
