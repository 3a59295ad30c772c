"""What a preparation kept and rejected, by corpus, language and reason: as tables on the screen, and as a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def count_rows(manifest: Any) -> Iterator[tuple[str, str, str, str, int]]:
    """(corpus, language, "kept" or the reason, "text" or "record", count); the language is "" where it is not known."""
    for name, entry in manifest["corpora"].items():
        yield name, "", "kept", "record", entry["records"]
        for language, counts in entry["languages"].items():
            yield name, language, "kept", "text", counts["segments"]
        for what, key in (("record", "rejected_records"), ("text", "dropped_texts")):
            for reason, languages in entry[key].items():
                for language, count in languages.items():
                    yield name, language, reason, what, count


def as_tsv(manifest: Any) -> str:
    """The same as a file with a head."""
    rows = "".join("\t".join(map(str, row)) + "\n" for row in count_rows(manifest))
    return "corpus\tlanguage\toutcome\tof\tcount\n" + rows


def summary(manifest: Any) -> str:
    """Two tables: corpora with what was kept and rejected, languages with sentences and tokens."""
    heads = "".join(f"{head:>10}" for head in ("read", "kept", "rejected", "segments"))
    lines = [f"{'corpus':<24}{heads}{'tokens':>12}  rejected because"]
    for name, entry in manifest["corpora"].items():
        reasons = [f"{reason} {sum(counts.values())}" for reason, counts in entry["rejected_records"].items()]
        dropped = [f"{reason} {sum(counts.values())}" for reason, counts in entry["dropped_texts"].items()]
        notes = ", ".join(reasons) + (f" (single texts: {', '.join(dropped)})" if dropped else "")
        label = name + (" (held out)" if entry["held_out"] else "")
        counts = (
            f"{entry['read']:>10,}{entry['records']:>10,}{entry['rejected']:>10,}{entry['segments']:>10,}"
        )
        lines.append(f"{label:<24}{counts}{entry['tokens']:>12,}  {notes}".rstrip())
    lines += [
        "",
        f"{'language':<12}{'sentences':>12}{'tokens':>12}{'cut':>8}{'rejected':>10}{'held-out sentences':>20}",
    ]
    for language in manifest["languages"]:
        rows = [
            (entry["held_out"], entry["languages"][language])
            for entry in manifest["corpora"].values()
            if language in entry["languages"]
        ]
        trained = [row for held_out, row in rows if not held_out]
        sentences, tokens, cut = (
            sum(row[key] for row in trained) for key in ("segments", "tokens", "truncated")
        )
        held_out_sentences = sum(row["segments"] for held_out, row in rows if held_out)
        lost = sum(
            count for _, of, outcome, _, count in count_rows(manifest) if of == language and outcome != "kept"
        )
        lines.append(
            f"{language:<12}{sentences:>12,}{tokens:>12,}{cut:>8,}{lost:>10,}{held_out_sentences:>20,}"
        )
    return "\n".join(lines)
