"""A run without DeepSpeed: plain torch, one process, one pool, dense losses, float64. What the real one must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from data.batch import PackedBatch
from data.stream import BatchStream, Tally
from training.build import build_model, maker_of, open_data, planner_of
from training.config import Recipe
from training.schedule import learning_rate


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
    model, _ = build_model(recipe, data.material.tokenizer.vocabulary_size)
    model = model.double()
    settings = recipe.optimizer
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=settings.betas,
        eps=settings.epsilon,
    )
    task_of = [stream.task.name for stream in data.streams]
    history = []
    for number, batches in enumerate(steps, 1):
        losses = _losses(model, batches, task_of)
        weights = {name: task.loss_weight for name, task in recipe.tasks.enabled().items()}
        loss = torch.stack([weights[task] * found.mean() for task, found in losses.items()]).sum()
        optimizer.zero_grad(set_to_none=False)  # an absent parameter has a gradient of zero, as under ZeRO
        loss.backward()
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_clipping or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(number, recipe.steps, settings)
        temperature = 1 / model.temperature(torch.zeros(1, dtype=torch.float64)).item()
        optimizer.step()
        values: dict[str, Any] = {"loss": loss, "grad_norm": norm, "temperature": temperature}
        values |= {f"loss/{task}": found.mean() for task, found in losses.items()}
        history.append({name: torch.as_tensor(value).item() for name, value in values.items()})
    return Reference(history, {name: tensor.detach() for name, tensor in model.state_dict().items()})


def _losses(model: Any, batches: Sequence[PackedBatch], task_of: Sequence[str]) -> dict[str, Tensor]:
    """Every loss term of a step by its task."""
    losses: list[Tensor] = []
    streams: list[Tensor] = []
    left, right, groups, pair_streams = [], [], [], []
    for batch in batches:
        hidden = model.encoder(
            batch.token_ids, batch.position_ids, batch.document_starts, batch.context_lengths
        )
        logits = model.head.logits(hidden[batch.predicted], model.encoder.embedding.word.weight)
        losses.append(F.cross_entropy(logits, batch.targets, reduction="none"))
        streams.append(batch.prediction_stream)
        starts = batch.document_starts.tolist()
        for a, b in batch.pairs.tolist():
            for side, document in ((left, a), (right, b)):
                side.append(F.normalize(hidden[starts[document] : starts[document + 1]].mean(0), dim=0))
        groups.append(batch.pair_groups)
        pair_streams.append(batch.pair_stream)
    if left:
        group = torch.cat(groups)
        hidden_pairs = (group[:, None] == group) & ~torch.eye(len(group), dtype=torch.bool)
        similar = torch.stack(left) @ torch.stack(right).T * model.temperature(hidden)
        similar = similar.masked_fill(hidden_pairs, float("-inf"))
        own = similar.diagonal()
        losses.append((similar.logsumexp(1) - own + similar.logsumexp(0) - own) / 2)
        streams.append(torch.cat(pair_streams))
    loss, stream = torch.cat(losses), torch.cat(streams)
    tasks = [task_of[i] for i in stream.tolist()]
    return {
        task: loss[torch.tensor([i for i, name in enumerate(tasks) if name == task])]
        for task in dict.fromkeys(tasks)
    }
