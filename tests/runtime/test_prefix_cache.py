"""Which row a prompt gets, what is copied to it, and which row is replaced: PrefixCache alone, with a small cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgellama.artifact.manifest import TensorSpec
from edgellama.engine.kv_cache import KVCache
from edgellama.engine.prefix_cache import PrefixCache

ROWS, CONTEXT = 3, 12


@pytest.fixture
def prefixes() -> PrefixCache:
    """An empty cache of three rows, whose arrays hold the token ids themselves."""
    shape = (ROWS, 1, CONTEXT, 1)
    cache = KVCache()
    for kind in "kv":
        cache.bind(TensorSpec(f"{kind}_cache.0", "float32", shape))
    return PrefixCache(cache, ROWS, CONTEXT)


def write(prefixes: PrefixCache, row: int, tokens: list[int], start: int = 0) -> None:
    """Writes tokens to one row, as the engine does."""
    begin, length = np.full(ROWS, 0), np.zeros(ROWS, np.int64)
    begin[row], length[row] = start, len(tokens)
    ids = np.full((ROWS, max(1, len(tokens))), 99)
    ids[row] = tokens
    prefixes.overwrite(begin.tolist(), length.tolist())
    for array in arrays(prefixes):
        array[row, 0, start : start + len(tokens), 0] = tokens
    prefixes.written(ids, begin.tolist(), length.tolist())


def arrays(prefixes: PrefixCache) -> list[np.ndarray]:
    return list(prefixes._cache.arrays.values())  # type: ignore[union-attr]


def rows(prefixes: PrefixCache) -> list[list[int]]:
    """Returns the ids that each row holds, after comparing them with the cache's content."""
    found = [prefixes.row(row).tolist() for row in range(ROWS)]
    for array in arrays(prefixes):
        assert [array[row, 0, : len(ids), 0].tolist() for row, ids in enumerate(found)] == found
    return found


def place(prefixes: PrefixCache, *prompts: list[int], **options: Any) -> list[tuple[int, int]]:
    """Returns (row, cached tokens) of each prompt."""
    placed = prefixes.place([np.array(prompt) for prompt in prompts], **options)
    return list(zip(placed.rows.tolist(), placed.cached.tolist(), strict=True))


def test_the_row_that_was_not_written_for_longest_is_taken(prefixes: PrefixCache) -> None:
    for row, first in ((1, 10), (0, 20), (2, 30)):
        write(prefixes, row, [first, first + 1])
    assert place(prefixes, [1, 2]) == [(1, 0)]
    assert place(prefixes, [1, 2], [3, 4]) == [(1, 0), (0, 0)]
    write(prefixes, 1, [7], start=2)  # rows of length 0 in that call stay as old as they were
    assert place(prefixes, [1, 2], [3, 4], [5, 6]) == [(0, 0), (2, 0), (1, 0)]
    assert rows(prefixes) == [[20, 21], [10, 11, 7], [30, 31]]


def test_a_prompt_continues_a_row_that_shares_at_least_half(prefixes: PrefixCache) -> None:
    write(prefixes, 2, [1, 2, 3, 4])
    write(prefixes, 0, [5])
    assert place(prefixes, [1, 2, 9]) == [(2, 2)]  # half of the row
    assert place(prefixes, [1, 9, 9]) == [(1, 1)]  # less: the oldest row gets a copy of the beginning
    assert rows(prefixes) == [[5], [1], [1, 2, 3, 4]]
    assert place(prefixes, [5, 9]) == [(0, 1)]
    assert place(prefixes, [5]) == [(1, 0)]  # the last token of a prompt never counts
    assert place(prefixes, [8, 9]) == [(1, 0)]


def test_of_two_rows_the_longer_match_is_continued(prefixes: PrefixCache) -> None:
    write(prefixes, 0, [1, 2])
    write(prefixes, 2, [1, 2, 3])
    assert place(prefixes, [1, 2, 3, 4]) == [(2, 3)]
    assert place(prefixes, [1, 2, 4]) == [(0, 2)]  # equal: the first row
    # the prompt that continues more chooses first, wherever it stands
    assert place(prefixes, [1, 2, 7, 7], [1, 2, 3, 8]) == [(0, 2), (2, 3)]
    assert place(prefixes, [1, 2, 3, 8], [1, 2, 7, 7]) == [(2, 3), (0, 2)]


def test_a_row_is_given_to_one_prompt_only(prefixes: PrefixCache) -> None:
    write(prefixes, 1, [1, 2, 3])
    assert place(prefixes, [1, 2, 3, 4], [1, 2, 3, 5], [6, 6]) == [(1, 3), (0, 3), (2, 0)]
    assert rows(prefixes) == [[1, 2, 3], [1, 2, 3], []]


def test_nothing_counts_as_cached_without_reuse(prefixes: PrefixCache) -> None:
    write(prefixes, 1, [1, 2, 3])
    before = rows(prefixes)
    assert place(prefixes, [1, 2, 3, 4], [1, 2, 3, 5], reuse=False) == [(1, 0), (0, 0)]
    assert rows(prefixes) == before


@pytest.mark.parametrize(("worth", "cached"), [(3, 4), (4, 4), (5, 0)])
def test_a_copy_is_made_from_that_many_tokens_on(prefixes: PrefixCache, worth: int, cached: int) -> None:
    prefixes._cache.worth_copying = worth  # type: ignore[misc]
    write(prefixes, 1, [1, 2, 3, 4, 5, 6])
    assert prefixes.bring(np.array([1, 2, 3, 4, 9]), 2) == cached
    assert rows(prefixes)[2] == [1, 2, 3, 4][:cached]
    write(prefixes, 0, [1, 2])
    assert prefixes.bring(np.array([1, 2, 3, 4, 9]), 0) == 2  # a copy would bring two more


def test_a_row_that_holds_as_much_as_any_is_left_alone(prefixes: PrefixCache) -> None:
    write(prefixes, 0, [1, 2, 3, 7])
    write(prefixes, 2, [1, 2, 3, 8])
    assert prefixes.bring(np.array([1, 2, 3, 4, 5]), 2) == 3
    assert rows(prefixes)[2] == [1, 2, 3, 8]
    assert prefixes.shared(np.array([1, 2, 3, 8, 9])).tolist() == [3, 0, 4]
    assert prefixes.shared(np.array([1, 2])).tolist() == [1, 0, 1]
    assert prefixes.shared(np.array([1, 2, 3, 7])).tolist() == [3, 0, 3]


def test_a_reorder_copies_what_both_have(prefixes: PrefixCache) -> None:
    write(prefixes, 0, [1, 2, 3])
    write(prefixes, 1, [7, 8, 9, 9, 9])
    write(prefixes, 2, [4, 5, 6, 7])
    prefixes.reorder(np.array([1, 1, 0]), 4)
    assert rows(prefixes) == [[7, 8, 9, 9], [7, 8, 9, 9, 9], [1, 2, 3]]
    prefixes.reorder(np.array([2, 1, 2]), 2)
    assert rows(prefixes) == [[1, 2], [7, 8, 9, 9, 9], [1, 2, 3]]
    prefixes.reorder(np.arange(3), 1)
    assert rows(prefixes) == [[1, 2], [7, 8, 9, 9, 9], [1, 2, 3]]


def test_an_interrupted_copy_leaves_no_record_of_its_rows(
    prefixes: PrefixCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    write(prefixes, 0, [1, 2, 3])
    write(prefixes, 1, [4, 5, 6])
    monkeypatch.setattr(prefixes._cache, "reorder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prefixes.reorder(np.array([0, 0, 2]), 3)
    assert rows(prefixes) == [[1, 2, 3], [], []]


def test_a_saved_text_replaces_the_oldest_row_and_is_the_newest_then(prefixes: PrefixCache) -> None:
    write(prefixes, 0, [1, 2])
    write(prefixes, 2, [3, 4, 5])
    saved = {name: array.copy() for name, array in prefixes.held(2, 3).items()}
    assert {name: array.shape for name, array in saved.items()} == dict.fromkeys(saved, (1, 3, 1))
    prefixes.fill(np.array([3, 4, 5]), saved)
    assert rows(prefixes) == [[1, 2], [3, 4, 5], [3, 4, 5]]
    prefixes.fill(np.array([3, 4]), {name: array[:, :2] for name, array in saved.items()})
    assert rows(prefixes) == [[3, 4], [3, 4, 5], [3, 4, 5]]
    assert place(prefixes, [8, 8], [9, 9], [7, 7]) == [(2, 0), (1, 0), (0, 0)]
    write(prefixes, 2, [8])
    assert place(prefixes, [9, 9], [7, 7]) == [(1, 0), (0, 0)]


def test_a_failed_fill_leaves_an_empty_row(prefixes: PrefixCache) -> None:
    write(prefixes, 1, [1])
    write(prefixes, 2, [1])
    write(prefixes, 0, [1, 2])
    with pytest.raises(KeyError):
        prefixes.fill(np.array([3, 4]), {})
    assert [len(prefixes.row(row)) for row in range(ROWS)] == [2, 0, 1]


def test_rows_are_forgotten_one_by_one_or_all(prefixes: PrefixCache) -> None:
    for row in range(ROWS):
        write(prefixes, row, [row, 5])
    prefixes.forget([1])
    assert rows(prefixes) == [[0, 5], [], [2, 5]]
    prefixes.forget()
    assert rows(prefixes) == [[], [], []]


def test_only_tokens_behind_the_known_ones_are_recorded(prefixes: PrefixCache) -> None:
    write(prefixes, 0, [1, 2, 3])
    write(prefixes, 0, [8, 9], start=4)  # position 3 is unknown
    write(prefixes, 0, [7], start=11)
    assert rows(prefixes)[0] == [1, 2, 3]
    write(prefixes, 0, [4, 5], start=3)
    write(prefixes, 0, [6], start=5)
    assert rows(prefixes)[0] == [1, 2, 3, 4, 5, 6]
    prefixes.overwrite([2, 0, 0], [1, 0, 0])  # the pass fails
    assert rows(prefixes) == [[1, 2], [], []]
    prefixes.written(np.array([[4], [4], [4]]), [3, 0, 0], [1, 0, 0])
    assert rows(prefixes) == [[1, 2], [], []]
