"""What one would run instead: XLMRobertaForMaskedLM in padded batches, sentence-transformers' loss on padded pairs.

A step is what the trainers do: each batch padded to its longest document, attention by torch's SDPA, gradients added
up over the step's batches, clipping, fused AdamW; bf16 is autocast over float32 weights. Left out, in their favour:
the trainers' own bookkeeping, tokenising and collating.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.step.documents import Documents, by_length, documents_of, in_turn, padded
from benchmarks.step.problem import Problem

# Documents of a batch: about what the memory of a small GPU takes; on a GPU what one of 80 GB takes with XLM-R's table.
BATCH: Final = {
    ("cpu", "demo"): 32,
    ("cpu", "long"): 8,
    ("cuda", "demo"): 128,
    ("cuda", "long"): 32,
}
_RATE: Final = 1e-4


def padded_step(problem: Problem) -> _MaskedStep:
    """Batches in random order, as the Trainer draws them."""
    documents = documents_of(problem)
    return _MaskedStep(
        problem, documents, in_turn(documents.read, BATCH[problem.device, problem.texts.lengths])
    )


def grouped_step(problem: Problem) -> _MaskedStep:
    """Batches of documents of like length, as with the Trainer's ``group_by_length``."""
    documents = documents_of(problem)
    return _MaskedStep(
        problem, documents, by_length(documents.read, BATCH[problem.device, problem.texts.lengths])
    )


class _MaskedStep:
    """Masked language modelling: the labels are the run's, whichever task they come from."""

    def __init__(self, problem: Problem, documents: Documents, batches: Sequence[Any]) -> None:
        from transformers import XLMRobertaForMaskedLM

        self.work = documents.work
        self._batches = [_on(problem.device, padded(batch)) for batch in batches]
        self._model = XLMRobertaForMaskedLM(_config(problem)).to(problem.device)
        self._update = _Update(problem, self._model)

    def __call__(self) -> None:
        """One step."""
        for batch in self._batches:
            with self._update.precision():
                loss = self._model(**batch).loss / len(self._batches)
            loss.backward()
        self._update()


class SentenceStep:
    """MultipleNegativesRankingLoss in both directions, over the mean of the tokens; one batch, as its pool is one."""

    def __init__(self, problem: Problem) -> None:
        """Build the model and the batch."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import losses
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
        from transformers import XLMRobertaModel

        documents = documents_of(problem)
        self.work = documents.work
        self._sides = [
            _on(problem.device, _features([documents.read[pair[side]] for pair in documents.pairs]))
            for side in (0, 1)
        ]
        width = problem.width
        encoder = _Encoder(XLMRobertaModel(_config(problem), add_pooling_layer=False))
        model = SentenceTransformer(
            modules=[encoder, Pooling(width, "mean"), Normalize()], device=problem.device
        )
        self._loss = losses.MultipleNegativesRankingLoss(
            model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
        )
        model.train()
        self._update = _Update(problem, model)

    def __call__(self) -> None:
        """One step."""
        with self._update.precision():
            loss = self._loss([dict(side) for side in self._sides], None)
        loss.backward()
        self._update()


class _Encoder(nn.Module):
    """transformers' encoder as sentence-transformers' own module calls it, of a shape instead of a folder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        output = self.encoder(input_ids=features["input_ids"], attention_mask=features["attention_mask"])
        return {**features, "token_embeddings": output.last_hidden_state}


class _Update:
    """Clipping and AdamW."""

    def __init__(self, problem: Problem, model: nn.Module) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=_RATE, weight_decay=0.01, fused=True)
        self._bf16, self._device = problem.precision == "bf16", problem.device

    def precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device, torch.bfloat16, enabled=self._bf16)

    def __call__(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def _on(device: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.to(device) for name, values in batch.items()}


def _features(side: Sequence[Any]) -> dict[str, Tensor]:
    batch = padded(side)
    del batch["labels"]
    return batch


def _config(problem: Problem) -> Any:
    """The shape of the run's encoder, without dropout as there."""
    from transformers import XLMRobertaConfig

    return XLMRobertaConfig(
        vocab_size=problem.vocabulary,
        hidden_size=problem.width,
        num_hidden_layers=problem.layers,
        num_attention_heads=problem.heads,
        intermediate_size=problem.feed_forward,
        max_position_embeddings=problem.texts.longest + 2,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
