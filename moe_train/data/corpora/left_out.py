"""Counts what a corpus does not read, so that no text is left out of a run silently."""

from collections.abc import Mapping
from typing import Any

from moe_train.data.corpora.corpus import Progress


class LeftOut:
    """Counts what was left out by reason, with the first case as an example."""

    def __init__(self, counts: Mapping[str, Any] | None = None) -> None:
        """Starts from `counts`, an earlier result of `as_dict`, for text that was downloaded before."""
        self._counts: dict[str, tuple[int, str]] = {}
        self.extend(counts or {})

    def add(self, what: str, example: object, count: int = 1) -> None:
        """Counts `count` more of `what`, which is a plural such as `files that are not UTF-8`."""
        before, first = self._counts.get(what, (0, str(example)))
        self._counts[what] = before + count, first

    def extend(self, counts: Mapping[str, Any]) -> None:
        """Adds the counts that another object's `as_dict` returned."""
        for what, (count, first) in counts.items():
            self.add(what, first, count)

    def as_dict(self) -> dict[str, tuple[int, str]]:
        """Returns the counts as JSON-ready data, for the facts of a cache entry."""
        return dict(self._counts)

    def report(self, progress: Progress) -> None:
        """Reports the counts, one sentence per reason."""
        for what, (count, first) in self._counts.items():
            progress(f"left out of the corpus: {what} ({count:,}; the first is {first})")
