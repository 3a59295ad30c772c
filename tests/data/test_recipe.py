"""Recipes: every error at once and with its remedy, and settings that say where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from data.config import DataConfig
from data.recipe import Section, UserError, parse_recipe, read_recipe, resolved_with_origins

GOOD = """\
store: stores/x
corpora:
  news: {kind: parallel, format: text, paths: {en: a.en, no: a.no}}
  web: {kind: monolingual, format: text, path: de.txt, language: de}
tokenizer: {train: {temperature: 3e-1}}
lexicons: [{path: words.tsv}]
"""


class Optimizer(Section):
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Recipe(Section):
    name: str = "yes"
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Optimizer | int = 3


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str, *overrides: str, cls: type[Section] = DataConfig) -> str:
    with pytest.raises(UserError) as error:
        parse_recipe(read_recipe(write(folder, text), overrides), cls)
    return str(error.value)


def test_a_misspelt_key_names_file_line_key_and_the_nearest_right_one(tmp_path: Path) -> None:
    said = message(tmp_path, GOOD.replace("corpora:", "corpara:"))
    assert str(tmp_path / "recipe.yaml") in said
    assert "line 2: corpara: unknown key; did you mean 'corpora'?" in said
    assert "missing" not in said  # the misspelt key is that error


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("parallel", "paralel").replace("temperature: 3e-1", "temperature: 3, sede: 1")
    said = message(tmp_path, text, "maximum_tokens=2")
    assert "4 errors" in said
    assert "corpora.news.kind = 'paralel'" in said and "did you mean 'parallel'?" in said
    assert "tokenizer.train.temperature = 3: input should be less than or equal to 1" in said
    assert "tokenizer.train.sede: unknown key; did you mean 'seed'?" in said
    assert "--set: maximum_tokens = 2" in said


def test_a_key_that_resembles_nothing_lists_what_is_allowed(tmp_path: Path) -> None:
    assert "zzz: unknown key; allowed here: rate, betas" in message(
        tmp_path, "optimizer: {zzz: 1}", cls=Recipe
    )


def test_errors_inside_a_union_name_the_path_that_was_written(tmp_path: Path) -> None:
    said = message(tmp_path, "schedule: {rat: 1}", cls=Recipe)
    assert "schedule.rat: unknown key; did you mean 'rate'?" in said


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ("{kind: parallel, format: tsv, path: x}", "needs the key 'columns'"),
        ("{kind: parallel, format: tsv, path: x, columns: [en]}", "must name at least two languages"),
        ("{kind: parallel, format: tsv, path: x, columns: [en, en]}", "names a column twice"),
        ("{kind: monolingual, format: tsv, path: x, columns: [en], language: en}", "are text, language"),
        ("{kind: monolingual, format: tsv, path: x, columns: [text]}", "give the language either"),
        ("{kind: scored, format: text, path: x}", "scored corpora come as jsonl or huggingface"),
        ("{kind: parallel, format: text, paths: {en: a}}", "must name at least two languages"),
        ("{kind: parallel, format: jsonl, path: x}", "needs the key 'translations'"),
        ("{kind: parallel, format: jsonl, path: x, translations: t, text: y}", "'text' does not belong to"),
        (
            "{kind: monolingual, format: text, path: x, language: {field: y}}",
            "a plain text file has no fields",
        ),
        ("{kind: monolingual, format: jsonl, path: x, text: t, language: {}}", "either a language"),
    ],
)
def test_keys_that_do_not_fit_the_kind_of_corpus_are_refused(tmp_path: Path, corpus: str, said: str) -> None:
    assert said in message(tmp_path, f"store: s\ntokenizer: {{train: {{}}}}\ncorpora:\n  c: {corpus}\n")


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    raw = read_recipe(write(tmp_path, "a: no\nb: 1e-4\nc: 010\nd: true\ne:\nf: 1_000\ng: 12:30\nno: 1\n"))
    assert raw.values == {
        "a": "no",
        "b": 1e-4,
        "c": "010",
        "d": True,
        "e": None,
        "f": 1000,
        "g": "12:30",
        "no": 1,
    }


def test_overrides_replace_values_and_are_named_as_origin(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    raw = read_recipe(
        path, ["corpora.web.language=fr", "lexicons.0.path=other.tsv", "tokenizer={path: some}"]
    )
    config = parse_recipe(raw, DataConfig)
    assert config.corpora["web"].language is not None and config.corpora["web"].language.code == "fr"
    assert config.lexicons[0].path == "other.tsv"
    assert config.tokenizer.path == "some" and config.tokenizer.train is None
    assert raw.origins["lexicons.0.path"] == "--set" and raw.origins["corpora.web.path"] == "recipe file"
    assert not any(key.startswith("tokenizer.train") for key in raw.origins)


@pytest.mark.parametrize("override", ["store", "=1", "a..b=1", "store.x=1", "lexicons.7.path=x", "store=[1"])
def test_an_override_that_can_not_be_applied_is_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        read_recipe(write(tmp_path, GOOD), [override])


def test_the_resolved_recipe_reads_back_and_names_the_origin_of_every_leaf(tmp_path: Path) -> None:
    raw = read_recipe(write(tmp_path, GOOD), ["tokenizer.train.seed=7"])
    config = parse_recipe(raw, DataConfig)
    text = resolved_with_origins(config, raw)
    assert parse_recipe(read_recipe(write(tmp_path, text)), DataConfig) == config
    origins = {line.split(":")[0].strip(): line.split("# ")[1] for line in text.splitlines() if "# " in line}
    assert origins["seed"] == "--set" and origins["temperature"] == "recipe file"
    assert origins["code"] == "recipe file"  # written as `language: de`
    assert origins["maximum_tokens"] == "default"
    assert all("# " in line or line.endswith((":", "-")) for line in text.splitlines())


@pytest.mark.parametrize(
    "name", ["no", "yes", "1e-4", "true", "", "a: b", "x # y", "päth/%s", "~", "-", "\u2028", "'"]
)
def test_every_string_survives_being_written(tmp_path: Path, name: str) -> None:
    config = Recipe(name=name)
    text = resolved_with_origins(config, read_recipe(write(tmp_path, "{}")))
    assert parse_recipe(read_recipe(write(tmp_path, text)), Recipe) == config


def test_sections_of_others_are_left_alone_but_not_misspelt_ones_of_ours(tmp_path: Path) -> None:
    raw = read_recipe(write(tmp_path, GOOD + "model: {layers: 3}\n"))
    assert parse_recipe(raw, DataConfig, other_sections=True).store == "stores/x"
    raw = read_recipe(write(tmp_path, GOOD + "model: {layers: 3}\nlexicon: []\n"))
    with pytest.raises(UserError, match="lexicon: unknown key; did you mean 'lexicons'"):
        parse_recipe(raw, DataConfig, other_sections=True)


def test_a_recipe_that_can_not_be_read_is_one_clear_message(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    with pytest.raises(UserError, match="did you mean .*recipe.yaml"):
        read_recipe(tmp_path / "recipee.yaml")
    for text, said in [
        ("a: [1", "not valid YAML"),
        ("- 1", "a mapping of keys"),
        ("a: 1\na: 2", ":2: the key a is given a second time"),
        ("", "a mapping of keys"),
        ("a: !!python/object:os.system x", "not valid YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_recipe(path)
