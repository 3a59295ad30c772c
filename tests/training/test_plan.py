"""The dry run: sizes by arithmetic, and nothing is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pretrain
from data.recipe import UserError, parse_recipe, read_recipe
from model.pretraining import PretrainingModel
from tests.training.runs import call, digests, sharding
from training.activation_sizes import Contents, Cutting, activations
from training.build import encoder_config
from training.config import Recipe
from training.plan import data_ranks_of, expected, parts_of, print_plan, sizes_of
from training.sharding import read_sharding, resolve_sharding
from training.sizes import States, Zero, states

# 1,000 parameters, of which 40 stay whole at stage 3; precision, stage -> weights, gradients, optimizer of 4 ranks
SHAPES = {"encoder.embedding.word.weight": (40, 8), "a.weight": (80, 8), "a.bias": (40,)}
TABLE = {
    ("fp32", 0): (4000, 4000, 8000),
    ("fp32", 1): (4000, 4000, 3000),
    ("fp32", 3): (1160, 1000, 3000),
    ("bf16", 0): (2000, 2000, 12000),
    ("bf16", 1): (2000, 2000, 3000),
    ("bf16", 3): (580, 500, 3000),
}
XXL = Path("recipes/xxl.yaml")


def zero_of(stage: int, precision: str, accumulation: int = 1, **values: object) -> Zero:
    resolved = {"gradient_accumulation_steps": accumulation, "zero_optimization": {"stage": stage, **values}}
    return Zero.of(resolved, precision)


@pytest.mark.parametrize(("precision", "stage"), TABLE)
def test_memory_of_a_rank(precision: str, stage: int) -> None:
    found = states(SHAPES, zero_of(stage, precision, stage3_param_persistence_threshold=40), 4)
    assert (found.weights, found.gradients, found.optimizer) == TABLE[precision, stage]
    assert found.offloaded == 0 and found.resting == sum(TABLE[precision, stage]) + found.buckets


def test_gradients_of_stage_2_are_those_of_a_part_and_of_several_microbatches_float32() -> None:
    assert states(SHAPES, zero_of(2, "bf16", accumulation=2), 4).gradients == 1000
    # The whole parameters that reach into the part of the third rank.
    assert states(SHAPES, zero_of(2, "fp32"), 4).gradients == 4 * 1000
    many = {f"{n}.weight": (10, 10) for n in range(10)}
    assert states(many, zero_of(2, "fp32"), 5).gradients == 4 * 200


def test_buckets_are_as_large_as_the_file_says_whatever_the_model() -> None:
    for stage, overlap, buckets in ((0, True, 0), (1, False, 1), (2, True, 2), (3, True, 1)):
        zero = zero_of(stage, "bf16", overlap_comm=overlap, reduce_bucket_size=1e6)
        assert states(SHAPES, zero, 4).buckets == buckets * 2 * 10**6
    assert states(SHAPES, zero_of(1, "bf16"), 4).buckets == 2 * 500_000_000  # DeepSpeed's default


def test_gathered_is_bounded_and_a_data_rank_alone_gathers_nothing() -> None:
    def at(data: int, **values: object) -> States:
        return states(SHAPES, zero_of(3, "fp32", stage3_param_persistence_threshold=40, **values), data)

    assert at(4).gathered == 4 * 960
    assert at(4, stage3_max_live_parameters=100).gathered == 400
    assert at(1).gathered == 0 and at(1).weights == 4000


def test_what_is_offloaded_is_on_the_host() -> None:
    cpu = {"device": "cpu"}
    found = states(SHAPES, zero_of(3, "bf16", offload_optimizer=cpu), 4)
    assert found.offloaded == found.optimizer + found.gradients
    assert states(SHAPES, zero_of(1, "bf16", offload_optimizer=cpu), 4).offloaded == 3000
    found = states(SHAPES, zero_of(3, "bf16", offload_optimizer=cpu, offload_param=cpu), 4)
    assert found.offloaded == found.optimizer + found.gradients + found.weights
    assert found.of_host == found.offloaded + found.updating
    assert states(SHAPES, zero_of(1, "bf16", offload_optimizer={"device": "none"}), 4).offloaded == 0


def test_activations_are_those_of_the_paper(small_recipe: Path) -> None:
    config = encoder_config(parse_recipe(read_recipe(small_recipe), Recipe), 2000, 0)
    rows = 4096
    contents = Contents(rows, rows, 0, rows, 8, 4)  # all are read: the last layer is like the others

    def layers(**cut: object) -> float:
        found = activations(config, contents, Cutting(device="cuda", **cut), 2)
        names = ("attention", "feed-forward", "norms, dropout", "layers' inputs")
        return sum(found.get(name, 0) for name in names) / config.layers / rows / config.width

    small = 0.05 * 32  # what norms and attention keep of each row, at a width of 32
    assert layers() == pytest.approx(32, abs=16 * small)  # 34 without the masks of dropout
    assert layers(tensor=2) == pytest.approx(layers() - 24 / 2, abs=small)
    assert layers(tensor=2, sequence=True) == pytest.approx(layers() / 2, abs=small)
    assert layers(checkpointing=True) == 2 and layers(tensor=2, sequence=True, checkpointing=True) == 1


def test_the_pool_of_several_microbatches_is_gone_when_the_activations_come(small_recipe: Path) -> None:
    settings = ["batch={step_tokens: 131072, row_tokens: 512, microbatch_tokens: 32768}"]
    recipe = parse_recipe(read_recipe(small_recipe, settings), Recipe)

    def at(ranks: int) -> tuple[int, int]:
        resolved = resolve_sharding(sharding(0), Path("ds.json"), recipe, Path("r.yaml"), ranks)
        parts = parts_of(recipe, encoder_config(recipe, 2000, 0), resolved, "cpu")
        sizes = sizes_of(recipe, resolved, parts, ranks)
        others = sum(sizes.activations.values()) + sum(sizes.temporaries.values())
        assert others > sizes.pool > 8 * 2**20
        return sizes.peak - sizes.states.resting - others, sizes.pool

    (none, pool), (some, same) = at(2), at(4)
    assert none == 0 and some == same == pool  # of the same pairs


def test_a_microbatch_is_expected_to_follow_the_budgets(small_recipe: Path) -> None:
    settings = ["tasks={mmlm: {mask_rate: 0.2}, camlm: {}, translation_alignment: {weight: 3}}"]
    settings.append("sampling.budgets={bilingual: 4, monolingual: 1}")
    found = expected(parse_recipe(read_recipe(small_recipe, settings), Recipe), "cpu")
    assert found.tokens == 1024
    assert found.predicted == int(1024 * (0.2 * 0.2 + 0.2 * 0.25 / 2))
    assert found.sentence_documents == int(1024 * 0.6) // 64 and found.pairs == found.sentence_documents // 2
    assert found.squares == 1024 * 64 and found.readers


def test_it_prints_parameters_steps_and_budgets_and_makes_nothing(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(small_recipe.parent)
    raw = read_recipe(small_recipe)
    recipe = parse_recipe(raw, Recipe)
    print_plan(recipe, raw, sharding(3), Path("ds.json"), 2)
    said = capsys.readouterr().out
    model = PretrainingModel(encoder_config(recipe, 2000, 0))
    assert f"{sum(p.numel() for p in model.parameters()):,} (64,000 of them the token table)" in said
    assert "vocabulary  2,000 rows in the token table, 2,000 ids in the tokenizer" in said
    assert (
        "ZeRO-3), 2 rank(s)\n" in said and "4,096 tokens = 4 microbatches of 1,024; 2 of them a rank" in said
    )
    for task, share in (
        ("mmlm", 25.0),
        ("tlm", 12.5),
        ("translation_alignment", 25.0),
        ("mixed_alignment", 25.0),
    ):
        assert f"{task:<22} {share:5.1f} % of the tokens" in said
    assert said.count("by arithmetic (not measured)") == 2 and "on a CPU" in said
    assert "languages'" not in said and "stay empty" not in said and "a rank has" not in said
    assert digests(small_recipe.parent) == before


def test_places_for_microbatches_that_stay_empty_are_said(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = read_recipe(small_recipe)
    print_plan(parse_recipe(raw, Recipe), raw, sharding(1), Path("ds.json"), 3)
    said = capsys.readouterr().out
    assert "2 of 6 places for a microbatch stay empty: batch.step_tokens 3,072 or 6,144 would fill" in said


def test_the_table_of_languages_is_counted_and_named(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = read_recipe(small_recipe, ["model.language_embeddings=true"])
    recipe = parse_recipe(raw, Recipe)
    print_plan(recipe, raw, sharding(3), Path("ds.json"), 2)
    model = PretrainingModel(encoder_config(recipe, 2000, 22))
    counted = sum(p.numel() for p in model.parameters())
    said = capsys.readouterr().out
    assert f"{counted:,} (64,000 of them the token table, 704 the languages', which are not exported)" in said


def test_a_tensor_rank_has_its_part_of_the_model(
    small_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for tensor in (1, 2):
        raw = read_recipe(small_recipe, [f"parallel.tensor={tensor}", "model.width=2048"])
        print_plan(parse_recipe(raw, Recipe), raw, sharding(3), Path("ds.json"), 2 * tensor)
        said[tensor] = capsys.readouterr().out
    assert "4 rank(s) = 2 tensor x 2 data" in said[2] and "tensor ranks" not in said[1]
    whole, part = (
        [line for line in text.splitlines() if line.startswith("  parameters")] for text in (said[1], said[2])
    )
    assert whole == part  # of the whole model
    weights = [float(re.search(r"optimizer +([\d.]+)", text)[1]) for text in (said[1], said[2])]  # type: ignore[index]
    assert weights[1] == pytest.approx(
        weights[0] / 2, rel=0.1
    )  # but for norms, positions and the dense layer of the head


def test_ten_billion_parameters_over_512_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    raw = read_recipe(XXL)
    recipe = parse_recipe(raw, Recipe)
    for name in ("zero1", "zero3"):
        path = Path(f"ds_configs/{name}.json")
        print_plan(recipe, raw, read_sharding(path), path, 512, device="cuda")
        said = capsys.readouterr().out
        assert "512 rank(s) = 8 tensor x 64 data" in said and "10,709,393,555" in said
        assert "stay empty" not in said and "1 of them a data rank" in said
    assert not Path(recipe.store).exists()
    path = Path("ds_configs/zero1.json")
    resolved = resolve_sharding(read_sharding(path), path, recipe, XXL, 64)
    parts = parts_of(recipe, encoder_config(recipe, 250_002, 0), resolved, "cuda")
    sizes = sizes_of(recipe, resolved, parts, 64)
    layer = 12 * 4096**2  # its matrices
    assert sizes.states.weights == pytest.approx((48 * layer + 250_002 * 4096) / 8 * 2, rel=0.02)
    assert sizes.peak < 40e9  # what a GPU of 40 GB would hold, by arithmetic
    assert sizes.sent["tensor ranks: layers"] == pytest.approx(
        # two gathers and two sums of a stream forward, three and two backward, for a sixth of it four beforehand
        48 * (4 + 6 + 4 / 6) * 32768 * 4096 * 2 * 7 / 8,
        rel=1e-3,
    )


@pytest.mark.parametrize(
    ("world", "words"),
    [
        (500, "--world 500 is not a multiple of parallel.tensor 8, .* Take --world 496 or 504, or parallel.tensor 1 or"
         " 2 or 4\\."),
        (3, "--world 3 .* Take --world 8, or parallel.tensor 1\\."),
        (0, "--world 0 .* Take --world 8\\."),
    ],
)  # fmt: skip
def test_a_world_that_is_no_whole_models_is_refused(world: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        data_ranks_of(parse_recipe(read_recipe(XXL), Recipe), world)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("parallel.tensor=6", "heads 32 can not be shared equally by 6 .* by 1, 2, 4, 8, 16, 32"),
        ("model.feed_forward=16388", "feed_forward 16388 can not be shared equally by 8 .* by 1, 2, 4"),
        ("model.heads=30", "width 4096 is not divisible by 30 heads; heads could be 8, 16, 32"),
        ("batch.microbatch_tokens=32000", "not a multiple of row_tokens 4096; near it are 28672 and 32768"),
        ("batch.row_tokens=65536", "is not a multiple of row_tokens 65536; near it is 65536"),
        ("batch.step_tokens=2000000", "microbatch_tokens 32768; near it are 1998848 and 2031616"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(setting: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_recipe(read_recipe(XXL, [setting]), Recipe)


@pytest.mark.ranks
def test_the_command_plans_for_ranks_that_are_not_here_and_refuses_with_one_message(tmp_path: Path) -> None:
    (done,) = call(pretrain.main, "--recipe", XXL, "--runs", tmp_path, "--dry-run", "--world", 512)
    assert done.status == 0 and "8 tensor x 64 data" in done.out and "of a rank on a GPU" in done.out
    (done,) = call(pretrain.main, "--recipe", XXL, "--runs", tmp_path, "--dry-run", "--world", 510)
    assert done.error.startswith("error: --world 510 is not a multiple") and "504 or 512" in done.error
    (done,) = call(pretrain.main, "--recipe", XXL, "--world", 512)
    assert done.status == 2 and "--world belongs to --dry-run" in done.err
    assert not list(tmp_path.iterdir())
