"""What a line of a text is, wherever line n of one file belongs to line n of another."""


def lines_of(content: bytes) -> list[str]:
    """The lines of UTF-8 text as `wc -l` counts them, and one that is not ended: form feeds and U+2028 end none.

    A byte order mark at the beginning is no text, nor is a carriage return at the end of a line. Raises
    UnicodeDecodeError.
    """
    lines = [line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n")]
    return lines if lines[-1] else lines[:-1]
