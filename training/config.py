"""Recipe: everything that decides what is trained, composed of each part's own settings; imports no torch or numpy."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from data.config import DataConfig, Name, Text
from data.recipe import Section
from data.settings.margin import MarginConfig
from data.settings.tasks import TasksConfig, gates_of
from data.stages import SamplingConfig
from model.config import EncoderConfig
from training.convergence import MEASURED, ConvergenceConfig


class BatchConfig(Section):
    """Tokens of a step, of a row (the unit in which documents are packed) and of a microbatch (one forward)."""

    step_tokens: int = Field(ge=1)
    row_tokens: int = Field(ge=1)
    microbatch_tokens: int = Field(ge=1)

    @model_validator(mode="after")
    def _divides(self) -> BatchConfig:
        if self.microbatch_tokens % self.row_tokens:
            raise ValueError(
                f"microbatch_tokens {self.microbatch_tokens} is not a multiple of row_tokens {self.row_tokens}; near it"
                f" {_multiples(self.row_tokens, self.microbatch_tokens)}"
            )
        if self.step_tokens % self.microbatch_tokens:
            raise ValueError(
                f"step_tokens {self.step_tokens} is not a multiple of microbatch_tokens {self.microbatch_tokens}; near"
                f" it {_multiples(self.microbatch_tokens, self.step_tokens)}"
            )
        return self


def _multiples(unit: int, value: int) -> str:
    """Those of ``unit`` around ``value``, in words."""
    below = value // unit * unit
    return f"are {below} and {below + unit}" if below else f"is {unit}"


class ModelConfig(Section):
    """The encoder's shape, or the Hugging Face folder to start from; and the temperature of the comparisons."""

    start_from: Text | None = None
    layers: int | None = Field(None, ge=1)
    width: int | None = Field(None, ge=1)
    heads: int | None = Field(None, ge=1)
    feed_forward: int | None = Field(None, ge=1)  # 4 * width if left out
    vocabulary_size: int | None = Field(None, ge=6)  # rows of the token table; as many as ids if left out
    positions: int = Field(514, ge=4)
    dropout: float = Field(0.0, ge=0, lt=1)
    initializer_std: float = Field(0.02, gt=0)
    language_embeddings: bool = False  # vectors of the languages, told to half of the documents; not exported
    temperature: float = Field(0.05, ge=0.01, le=1)
    learn_temperature: bool = True
    activation_checkpointing: bool = False

    def encoder(self, ids: int, languages: int = 0) -> EncoderConfig:
        """The shape that the recipe gives for ``ids`` ids and a table of ``languages``; not for start_from."""
        assert self.layers is not None and self.width is not None and self.heads is not None
        return EncoderConfig(
            vocabulary_size=self.vocabulary_size or ids,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            feed_forward=self.feed_forward or 4 * self.width,
            positions=self.positions,
            dropout=self.dropout,
            initializer_std=self.initializer_std,
            languages=languages,
        )

    @model_validator(mode="after")
    def _shape_or_folder(self) -> ModelConfig:
        shape = {"layers": self.layers, "width": self.width, "heads": self.heads}
        missing = [name for name, value in shape.items() if value is None]
        if self.start_from is None and missing:
            raise ValueError(f"give {', '.join(missing)}, or a folder to start from (start_from)")
        decided = [*shape, "feed_forward", "vocabulary_size"]
        given = [name for name in decided if getattr(self, name) is not None]
        if self.start_from is not None and given:
            raise ValueError(f"the folder of start_from decides the shape; leave out {', '.join(given)}")
        if self.start_from is None:
            try:
                self.encoder(ids=1_000_000)  # any size: the rest is what is looked at
            except ValidationError as error:
                raise ValueError("; ".join(fault["msg"] for fault in error.errors())) from None
        return self


class OptimizerConfig(Section):
    """AdamW, warm-up and decay. The defaults are those of InfoXLM base (Chi et al., 2021).

    A row of the token table sees the few gradients of its own token, and its best rate does not fall with the width
    as that of the layers does (Yang et al., 2022, "Tensor Programs V"), so it may have a rate of its own.
    """

    learning_rate: float = Field(2e-4, gt=0)
    table_learning_rate: float | None = Field(None, gt=0)  # of the token table; the same if left out
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    epsilon: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    gradient_clipping: float = Field(1.0, ge=0)  # 0 switches it off
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    final_fraction: float = Field(0.0, ge=0, le=1)  # of the learning rate, after the last step
    implementation: Literal["auto", "torch", "apex"] = "auto"


class ParallelConfig(Section):
    """How many neighbouring ranks share one model; the ranks over that are the data ranks, which ZeRO shards over."""

    tensor: int = Field(1, ge=1)
    sequence: bool = False  # they also share what lies between the layers, each some of the tokens


class AlignmentConfig(Section):
    """The loss of the pairs of translation_alignment and mixed_alignment, which are one pool."""

    additive_margin: float = Field(
        0.0, ge=0, lt=2
    )  # that a pair must be closer by, in cosine, than it counts for
    matryoshka: tuple[
        Annotated[int, Field(ge=1)], ...
    ] = ()  # widths of prefixes that are to serve as vectors too

    @model_validator(mode="after")
    def _grows(self) -> AlignmentConfig:
        if list(self.matryoshka) != sorted(set(self.matryoshka)):
            raise ValueError(f"matryoshka {list(self.matryoshka)}: give each width once, the smallest first")
        return self

    def too_wide(self, width: int) -> str | None:
        """What is wrong with the prefixes for sentence vectors of ``width``; None if nothing is."""
        if self.matryoshka and self.matryoshka[-1] >= width:
            return (
                f"alignment.matryoshka {list(self.matryoshka)}: prefixes are shorter than the sentence vector,"
                f" which has {width} coordinates and is always part of the loss"
            )
        return None


class KernelsConfig(Section):
    """Which implementation of each loss runs. One that can not run here is refused at the first step.

    They differ in time and memory, not in what they compute; kernels/implementation.py says what each is.
    """

    alignment: Literal["auto", "reference", "streaming", "triton"] = "auto"
    margin: Literal["auto", "reference", "streaming", "triton", "cuda", "native"] = "auto"
    in_batch_margin: Literal["auto", "reference", "streaming", "triton"] = "auto"
    vocabulary: Literal["auto", "reference", "streaming", "triton", "torch"] = "auto"


class RetrievalConfig(Section):
    """A held-out multi-way corpus whose rows are looked up among themselves and, if given, among more rows."""

    corpus: Name
    among: tuple[Name, ...] = ()  # further corpora whose rows stand among the candidates


class EvaluationConfig(Section):
    """When and on what the model is measured."""

    every: int = Field(0, ge=0)  # steps; 0: only before the first and after the last
    before: bool = True  # also before the first step
    retrieval: dict[Name, RetrievalConfig] = {}
    masked: tuple[Name, ...] = ()  # held-out corpora for masked accuracy and CAMLM against its control
    other_pairs: int = Field(20, ge=0)  # pairs of languages without English that are sampled
    maximum_rows: int = Field(1000, ge=1)  # rows of a masked corpus that are used
    seed: int = Field(0, ge=0, lt=2**63)

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure on."""
        return bool(self.retrieval or self.masked)


class CheckpointConfig(Section):
    """When the run is saved, and how many saves are kept."""

    every: int = Field(1000, ge=0)  # steps; 0: only at the end
    keep: int = Field(3, ge=1)  # the newest
    keep_every: int = Field(0, ge=0)  # and for good those of every so many steps; 0: none


class LogConfig(Section):
    """How often the console speaks; metrics.jsonl has every step."""

    every: int = Field(10, ge=1)
    tensorboard: bool = True


class Recipe(DataConfig):
    """What to train: model, corpora, tasks with budgets, optimizer, evaluation."""

    name: Name
    seed: int = Field(1, ge=0, lt=2**63)
    steps: int = Field(ge=1)
    precision: Literal["bf16", "fp32"] = "bf16"
    workers: int = Field(1, ge=0)  # processes of each rank that make batches; 0: the rank itself
    tasks: TasksConfig
    sampling: SamplingConfig = SamplingConfig()
    batch: BatchConfig
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    kernels: KernelsConfig = KernelsConfig()
    parallel: ParallelConfig = ParallelConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    convergence: ConvergenceConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = []
        alignment = self.tasks.translation_alignment
        margin, triplets = self.tasks.adaptive_margin, self.tasks.triplets().values()
        texts = max(alignment.texts if alignment else 2, *(2 + each.negatives for each in triplets), 0)
        if self.batch.row_tokens < texts * self.maximum_tokens:
            problems.append(
                f"batch.row_tokens {self.batch.row_tokens} must hold {texts} documents of maximum_tokens"
                f" {self.maximum_tokens}: at least {texts * self.maximum_tokens}"
            )
        for name, read in self.corpora.items():
            unscored = read.kind == "scored" and read.scores is None and not read.held_out
            if unscored and margin is not None and margin.teacher is None and margin.form != "fixed":
                problems.append(
                    f"corpora.{name} has no scores, so tasks.adaptive_margin needs a teacher's: python -m data.teach,"
                    " and name the folder that it writes as tasks.adaptive_margin.teacher"
                )
        if self.alignment != AlignmentConfig() and not self.tasks.aligns:
            problems.append(
                "alignment is the loss of tasks.translation_alignment, mixed_alignment and triplet_alignment, and none"
                " of them is on"
            )
        if self.model.width is not None and (problem := self.alignment.too_wide(self.model.width)):
            problems.append(problem)
        if self.optimizer.warmup_steps > self.steps:
            problems.append(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} exceeds steps {self.steps}"
            )
        if self.tasks.generates and not self.model.language_embeddings:
            problems.append(
                "pseudo tokens (tasks.btmlm, tasks.mixed_alignment.generators.pseudo_tokens) need"
                " model.language_embeddings: true; nothing else tells the model in which language to write"
            )
        if self.parallel.sequence and self.parallel.tensor == 1:
            problems.append(
                "parallel.sequence shares tokens among tensor ranks; give parallel.tensor as well"
            )
        if self.model.start_from is None:
            shape = self.model.encoder(ids=1_000_000)
            problems += [f"parallel.tensor: {problem}" for problem in shape.shared_by(self.parallel.tensor)]
        if self.model.start_from is None and self.maximum_tokens > self.model.positions - 2:
            problems.append(
                f"maximum_tokens {self.maximum_tokens} needs model.positions of at least {self.maximum_tokens + 2}"
            )
        named = {
            f"evaluation.retrieval.{name}": [r.corpus, *r.among]
            for name, r in self.evaluation.retrieval.items()
        }
        named["evaluation.masked"] = list(self.evaluation.masked)
        for where, corpora in named.items():
            for corpus in corpora:
                if corpus not in self.corpora:
                    problems.append(f"{where} names corpus {corpus!r}; corpora: {', '.join(self.corpora)}")
                elif self.corpora[corpus].kind != "parallel":
                    problems.append(
                        f"{where} needs parallel corpora; {corpus!r} is {self.corpora[corpus].kind}"
                    )
        problems += self._misnamed_in_sampling() + self._misjudged()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _misnamed_in_sampling(self) -> list[str]:
        """Tasks and corpora that the sampling section names and that are not there."""
        tasks = list(self.tasks.enabled())
        problems = [
            f"sampling.stages.{number}.weights names {name!r}; tasks that are on: {', '.join(tasks)}"
            for number, stage in enumerate(self.sampling.stages)
            for name in stage.weights
            if name not in tasks
        ]
        trained = [name for name, corpus in self.corpora.items() if not corpus.held_out]
        caps = self.sampling.maximum_epochs
        for name in caps if isinstance(caps, dict) else ():
            if name not in trained:
                problems.append(
                    f"sampling.maximum_epochs names {name!r}; corpora that are trained on: {', '.join(trained)}"
                )
        return problems

    def _misjudged(self) -> list[str]:
        """What the rule of convergence and the gates look at, and is not measured."""
        problems = []
        tasks = self.tasks.enabled()
        measured = self.evaluation.every > 0 and bool(self.evaluation.masked)
        if self.convergence is not None:
            if not measured:
                problems.append(
                    "convergence is judged on held-out text: give evaluation.every (how often, in steps) and"
                    " evaluation.masked (which corpora)"
                )
            for side in ("bilingual", "monolingual"):
                named = getattr(self.convergence, side)
                choice = [named] if named else [task for task in MEASURED if MEASURED[task] == side]
                if not any(task in tasks for task in choice):
                    problems.append(f"convergence needs the {side} task {' or '.join(choice)} under 'tasks'")
        for name, gate in gates_of(self.tasks).items():
            if gate.tokens is None and (not measured or "camlm" not in tasks):
                problems.append(
                    f"tasks.{name}.gate waits for CAMLM's held-out accuracy: that needs the task camlm,"
                    " evaluation.every and evaluation.masked; or give the gate tokens"
                )
        return problems


def settings_of_a_run(recipe: Recipe) -> dict[str, Any]:
    """The settings that a run can not change while it goes on.

    They decide which documents, masks and mixed texts every step holds, or the shape and type of what a
    checkpoint holds.
    """
    values = recipe.model_dump(mode="json")
    for task in values["tasks"].values():
        if task is not None:
            for name in ("loss_weight", *MarginConfig.model_fields):  # what a loss counts, not what is read
                task.pop(name, None)
            task.pop("teacher", None)  # a folder; what it holds is compared by its fingerprint
    for name in ("dropout", "activation_checkpointing", "initializer_std", "temperature"):
        values["model"].pop(name)  # do not touch the weights that are there
    del values["batch"]["microbatch_tokens"]
    names = ["seed", "tasks", "sampling", "maximum_tokens", "batch", "model", "precision"]
    if recipe.convergence is not None:
        names.append("convergence")
        values["convergence"].pop("stop")  # one that was complete may go on
    if recipe.convergence is not None or gates_of(recipe.tasks):  # evaluations decide about budgets
        names.append("evaluation")
        values["evaluation"] = {
            name: values["evaluation"][name] for name in ("every", "masked", "maximum_rows", "seed")
        }
    return {name: values[name] for name in names}
