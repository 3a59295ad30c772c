"""Files of word lists: packed or not, damaged, wrong."""

import gzip

import pytest

from data.lexicon import Lexicon
from data.recipe import UserError


@pytest.mark.parametrize("kept", [1, 2, 30, -8, -1])
def test_a_torn_lexicon_is_refused_with_its_name(tmp_path, kept):
    path = tmp_path / "lexicon.tsv.gz"
    path.write_bytes(gzip.compress("".join(f"de\tcat {i}\tKatze {i}\n" for i in range(1000)).encode())[:kept])
    with pytest.raises(UserError, match=r"lexicon\.tsv\.gz"):
        Lexicon.load([path])


def test_a_lexicon_is_unpacked_by_its_content_not_by_its_name(tmp_path):
    for name, pack in (("plain.gz", bytes), ("packed.tsv", gzip.compress)):
        (tmp_path / name).write_bytes(pack(b"de\tcat\tKatze\r\n"))
        assert Lexicon.load([tmp_path / name]).translations("en", "cat") == (("de", "Katze"),)


def test_a_bad_lexicon_names_file_and_line(tmp_path):
    path = tmp_path / "lexicon.tsv"
    path.write_text("de\tcat\tKatze\nde\tdog\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lexicon\.tsv, line 2: expected language, English and translation"):
        Lexicon.load([path])
    with pytest.raises(UserError, match="Check the path under 'lexicons'"):
        Lexicon.load([tmp_path / "none.tsv"])
