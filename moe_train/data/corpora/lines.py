"""Splits a text into lines, the same way wherever line n of one file belongs to line n of another."""


def lines_of(content: bytes) -> list[str]:
    """Returns the lines of UTF-8 text, ended by newlines only, as `wc -l` counts them, and an unfinished last line.

    Form feeds and U+2028 end no line. A byte order mark at the beginning and carriage returns at line ends are removed.
    Raises UnicodeDecodeError.
    """
    lines = [line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n")]
    return lines if lines[-1] else lines[:-1]
