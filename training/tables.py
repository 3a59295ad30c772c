"""Figures of an evaluation as plain text tables, one column for each thing that was measured."""

from __future__ import annotations

from collections.abc import Mapping

Figures = Mapping[str, Mapping[str, float]]  # column -> name of the figure -> value


def print_figures(figures: Figures) -> None:
    """A table of the retrieval means, one row a set and one column each; then the masked tasks."""
    columns = list(figures)
    names = [
        n
        for n in next(iter(figures.values()))
        if n.startswith("retrieval/") and n.endswith(("/mean", "/mean_of_others"))
    ]
    names += [n for n in next(iter(figures.values())) if n.startswith("masked/") and n.count("/") == 2]
    width = max((len(name) for name in names), default=0)
    print(" " * width + "".join(f"{column:>14}" for column in columns))
    for name in names:
        print(f"{name:<{width}}" + "".join(_cell(figures[column].get(name), name) for column in columns))


def print_languages(figures: Figures, name: str, pivot: str = "en") -> None:
    """The mean of both directions of every language of one retrieval set."""
    columns = list(figures)
    prefix = f"retrieval/{name}/"
    languages = sorted({key.removeprefix(prefix).removesuffix(f"-{pivot}") for key in next(iter(figures.values()))
                        if key.startswith(prefix) and key.endswith(f"-{pivot}")})  # fmt: skip
    print(f"{name}: accuracy@1 with {pivot}, mean of both directions")
    print("    " + "".join(f"{column:>14}" for column in columns))
    for language in languages:
        both = [f"{prefix}{language}-{pivot}", f"{prefix}{pivot}-{language}"]
        means = [[f[key] for key in both if key in f] for f in figures.values()]
        print(f"  {language}" + "".join(_cell(sum(m) / len(m) if m else None, "accuracy") for m in means))


def _cell(value: float | None, name: str) -> str:
    if value is None:
        return f"{'-':>14}"
    return f"{value:14.3f}" if name.endswith("loss") else f"{100 * value:12.1f} %"
