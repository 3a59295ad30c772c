"""A run without DeepSpeed: plain torch, one process, one pool, dense losses, float64. What the real one must equal."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from data.batch import PackedBatch
from data.scripts import script_of
from data.stream import BatchStream
from data.tally import Tally
from training.build import DataParts, build_model, maker_of, open_data, planner_of
from training.config import Recipe
from training.schedule import learning_rate

MARGINS = ("adaptive_margin", "in_batch_margin")


class Reference(NamedTuple):
    """What the run was."""

    steps: list[dict[str, float]]  # loss, loss/TASK, grad_norm, temperature
    weights: dict[str, Tensor]  # after the last step


def steps_of(recipe: Recipe, steps: int) -> list[list[PackedBatch]]:
    """All microbatches of the first steps."""
    data = open_data(recipe)
    planner = planner_of(recipe, data)
    stream = BatchStream(
        planner,
        maker_of(recipe),
        microbatch_tokens=recipe.batch.microbatch_tokens,
        rank=0,
        ranks=1,
        workers=0,
    )
    found = []
    for step in range(1, steps + 1):
        microbatches = stream.next()
        planner.feedback(step, sum(m.tally for m in microbatches)[:, Tally.TOKENS])
        found.append([PackedBatch.from_arrays(microbatch.arrays) for microbatch in microbatches])
    return found


def train_plainly(recipe: Recipe, steps: Sequence[Sequence[PackedBatch]]) -> Reference:
    """Train on the microbatches of ``steps``; every loss is divided by its count in the whole step."""
    data = open_data(recipe)
    model, _ = build_model(recipe, data)
    model = model.double()
    settings = recipe.optimizer
    parameters = list(model.parameters())
    table = model.encoder.embedding.word.weight
    others = [p for p in parameters if p.dim() >= 2 and p is not table]
    optimizer = torch.optim.AdamW(
        [
            {"params": [table], "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=settings.betas,
        eps=settings.epsilon,
    )
    task_of = [stream.task.name for stream in data.streams]
    judge = Judge(data) if recipe.tasks.mixed_alignment and recipe.tasks.mixed_alignment.generates else None
    margins = {name: Running(getattr(recipe.tasks, name)) for name in MARGINS if getattr(recipe.tasks, name)}
    history = []
    for number, batches in enumerate(steps, 1):
        if judge is not None:
            judge.given_up = 0
        losses = _losses(model, batches, task_of, margins, judge)
        weights = {name: task.loss_weight for name, task in recipe.tasks.enabled().items()}
        weights |= {name: margin.config.loss_weight for name, margin in margins.items()}
        loss = torch.stack([weights[task] * found.mean() for task, found in losses.items()]).sum()
        optimizer.zero_grad(set_to_none=False)  # an absent parameter has a gradient of zero, as under ZeRO
        loss.backward()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clipping or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, recipe.steps, settings)
        of_table = settings.table_learning_rate or settings.learning_rate
        optimizer.param_groups[0]["lr"] *= of_table / settings.learning_rate
        temperature = 1 / model.temperature(torch.zeros(1, dtype=torch.float64)).item()
        optimizer.step()
        values: dict[str, Any] = {"loss": loss, "grad_norm": norm, "temperature": temperature}
        values |= {f"loss/{task}": found.mean() for task, found in losses.items()}
        if judge is not None:
            values["mixed/one_language"] = float(judge.given_up)
        values |= {f"margin/{name}/scale": margin.step() for name, margin in margins.items()}
        history.append({name: torch.as_tensor(value).item() for name, value in values.items()})
    return Reference(history, {name: tensor.detach() for name, tensor in model.state_dict().items()})


class Running:
    """The margin of a recipe, and its scale as it goes."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.scale = 1.0 if config.scale == "running" else config.scale
        self._steps: list[tuple[Tensor, Tensor]] = []  # of each step: all student's gaps, all teacher's
        self._seen: tuple[list[Tensor], list[Tensor]] = ([], [])

    def mean(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of the losses of one anchor, gaps (k,)."""
        for seen, gaps in zip(self._seen, (student, teacher), strict=True):
            seen.append(gaps.detach().double())
        low, high = self.config.minimum, self.config.maximum
        wanted = (self.scale * teacher.double() + self.config.offset).clamp(
            -torch.inf if low is None else low, torch.inf if high is None else high
        )
        if self.config.form == "softplus":
            return (self.config.tau * F.softplus((wanted - student) / self.config.tau)).mean()
        assert self.config.form == "hinge"
        return (wanted - student).relu().mean()

    def step(self) -> float:
        """The scale of the step that is done; the next one has another."""
        before = self.scale
        if any(map(len, self._seen)) and self.config.scale == "running":
            self._steps.append((torch.cat(self._seen[0]), torch.cat(self._seen[1])))
            weights = torch.cat(
                [torch.full((len(s),), 0.99**age).double() for age, (s, _) in enumerate(self._steps[::-1])][
                    ::-1
                ]
            )
            spreads = []
            for gaps in (torch.cat(side) for side in zip(*self._steps, strict=True)):
                mean = (weights * gaps).sum() / weights.sum()
                spreads.append(((weights * (gaps - mean) ** 2).sum() / weights.sum()).sqrt())
            self.scale = float(spreads[0] / spreads[1])
        self._seen = ([], [])
        return before


class Judge:
    """Which mixed pairs hold two languages, id by id; see objectives/second_language.py for the words of the rule."""

    def __init__(self, data: DataParts) -> None:
        self._counts: list[Counter[int]] = [Counter() for _ in data.store.languages]
        for corpus in data.store.corpora.values():
            for segment in range(0 if corpus.held_out else corpus.segments):
                self._counts[corpus.segment_language[segment]].update(corpus.ids(segment).tolist())
        tokenizer = data.material.tokenizer
        self._script = [script_of(piece) for piece in tokenizer.pieces(range(tokenizer.vocabulary_size))]
        self._written_in = []
        for counts in self._counts:
            scripts: Counter[str] = Counter()
            for i, count in counts.items():
                if i >= 4 and self._script[i]:
                    scripts[self._script[i]] += count
            self._written_in.append({s for s in scripts if scripts[s] >= 0.3 * max(scripts.values())})
        self.given_up = 0

    def second(self, i: int, text: Sequence[int], source: int, target: int) -> bool:
        """Whether ``i``, written for ``text``, is of the language ``target``."""
        mine, theirs = self._counts[target], self._counts[source]
        if i in text or self._script[i] not in self._written_in[target] or not mine[i]:
            return False
        standing = max(theirs[i], 1) if self._script[i] in self._written_in[source] else theirs[i]
        return mine[i] / mine.total() >= 4 * standing / theirs.total()

    def kept(self, batch: PackedBatch, generation: PackedBatch) -> PackedBatch:
        """A filled batch without the pairs that hold one language; they are counted."""
        written = iter(batch.token_ids[batch.slots].tolist())
        found = []
        starts = generation.document_starts.tolist()
        for start, end, context in zip(
            starts[:-1], starts[1:], generation.context_lengths.tolist(), strict=True
        ):
            text, languages = generation.token_ids[start : start + context].tolist(), generation.language_ids
            for place in range(start + context, end):
                found.append(self.second(next(written), text, int(languages[start]), int(languages[place])))
        holds: dict[int, bool] = {}
        starts = batch.document_starts.tolist()
        for slot, second in zip(batch.slots.tolist(), found, strict=True):
            document = bisect_right(starts, slot) - 1
            holds[document] = holds.get(document, False) or second
        rows = [n for n, pair in enumerate(batch.pairs.tolist()) if all(holds.get(d, True) for d in pair)]
        self.given_up += len(batch.pairs) - len(rows)
        names = ("pairs", "pair_groups", "pair_stream")
        return replace(batch, **{name: getattr(batch, name)[rows] for name in names})


def _losses(
    model: Any,
    batches: Sequence[PackedBatch],
    task_of: Sequence[str],
    margins: Mapping[str, Running],
    judge: Judge | None = None,
) -> dict[str, Tensor]:
    """Every loss term of a step by its task."""
    triplets: list[Tensor] = []
    teacher_left, teacher_right = [], []
    losses: list[Tensor] = []
    streams: list[Tensor] = []
    left, right, groups, pair_streams = [], [], [], []
    negatives_of_pool, negative_groups = [], []
    for batch in batches:
        if batch.generation is not None:
            batch = with_pseudo_tokens(model, batch, batch.generation)
            batch = batch if judge is None else judge.kept(batch, batch.generation)
        languages = batch.language_ids.where(batch.language_shown, -1)
        hidden = model.encoder(
            batch.token_ids, batch.position_ids, batch.document_starts, batch.context_lengths, languages
        )
        logits = model.head.logits(hidden[batch.predicted], model.encoder.embedding.word.weight)
        losses.append(F.cross_entropy(logits, batch.targets, reduction="none"))
        streams.append(batch.prediction_stream)
        starts = batch.document_starts.tolist()
        vector = [
            F.normalize(hidden[starts[document] : starts[document + 1]].mean(0), dim=0)
            for document in range(batch.sentence_documents)
        ]
        for a, b in batch.pairs.tolist():
            left.append(vector[a])
            right.append(vector[b])
            teacher_left.append(batch.teacher_vectors[a])
            teacher_right.append(batch.teacher_vectors[b])
        for row, (a, p) in enumerate(zip(batch.triplet_anchor, batch.triplet_positive, strict=True)):
            negatives = [n for n in batch.triplet_negatives[row].tolist() if n >= 0]
            gaps = torch.stack([vector[a] @ vector[p] - vector[a] @ vector[n] for n in negatives])
            triplets.append(margins["adaptive_margin"].mean(gaps, batch.teacher_gaps[row, : len(negatives)]))
        negatives_of_pool += [vector[n] for n in batch.negatives.tolist()]
        negative_groups.append(batch.negative_groups)
        groups.append(batch.pair_groups)
        pair_streams.append(batch.pair_stream)
    if left:
        group = torch.cat(groups)
        of_keys = torch.cat([group, *negative_groups])
        hidden_pairs = (group[:, None] == of_keys) & ~torch.eye(len(group), len(of_keys), dtype=torch.bool)
        similar = torch.stack(left) @ torch.stack(right + negatives_of_pool).T * model.temperature(hidden)
        similar = similar.masked_fill(hidden_pairs, float("-inf"))
        own = similar.diagonal()
        columns = similar[:, : len(group)].logsumexp(0)
        losses.append((similar.logsumexp(1) - own + columns - own) / 2)
        streams.append(torch.cat(pair_streams))
    found: dict[str, Tensor] = {}
    if triplets:
        found["adaptive_margin"] = torch.stack(triplets)
    if "in_batch_margin" in margins and left:
        student = torch.stack(left) @ torch.stack(right).T
        teacher = torch.stack(teacher_left).double() @ torch.stack(teacher_right).double().T
        seen = [bool(a.any() and b.any()) for a, b in zip(teacher_left, teacher_right, strict=True)]
        rows = []
        for i in range(len(left)):
            others = [j for j in range(len(left)) if seen[i] and seen[j] and group[i] != group[j]]
            if others:
                gaps = student[i, i] - student[i, others], teacher[i, i] - teacher[i, others]
                rows.append(margins["in_batch_margin"].mean(*gaps))
            elif seen[i]:
                rows.append(student.sum() * 0)
        found["in_batch_margin"] = torch.stack(rows)
    loss, stream = torch.cat(losses), torch.cat(streams)
    tasks = [task_of[i] for i in stream.tolist()]
    return found | {
        task: loss[torch.tensor([i for i, name in enumerate(tasks) if name == task])]
        for task in dict.fromkeys(tasks)
    }


def with_pseudo_tokens(model: Any, batch: PackedBatch, generation: PackedBatch) -> PackedBatch:
    """The first pass, one document after the other: every placeholder gets the ordinary id that scores best."""
    ids: list[int] = []
    starts = generation.document_starts.tolist()
    table = model.encoder.embedding.word.weight
    with torch.no_grad():
        for start, end, context in zip(
            starts[:-1], starts[1:], generation.context_lengths.tolist(), strict=True
        ):
            assert generation.language_shown[start:end].all()
            hidden = model.encoder(
                generation.token_ids[start:end],
                generation.position_ids[start:end],
                torch.tensor([0, end - start]),
                torch.tensor([context]),
                generation.language_ids[start:end],
            )
            logits = model.head.logits(hidden[context:], table)
            ids += (logits[:, 4:-1].argmax(1) + 4).tolist()  # between <unk> and <mask>
    token_ids = batch.token_ids.clone()
    token_ids[batch.slots] = torch.tensor(ids)
    return replace(batch, token_ids=token_ids)
