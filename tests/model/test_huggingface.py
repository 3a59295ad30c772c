"""Model folders: transformers and sentence-transformers are the oracles, both ways."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)

from model.huggingface import ModelError, load_weights, read_config, reopened_outputs, write_folder
from model.pretraining import PretrainingModel
from tests.model.conftest import SENTENCES, make_config

Build = Callable[..., PretrainingModel]
SHAPE = dict(
    vocab_size=180,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    pad_token_id=1,
)

HEAD = {"head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias", "head.bias"}


def scattered(model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter far from its initial value, so that a swapped norm or a lost bias shows."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.eval()
    return model


def xlmr(with_head: bool = True) -> PreTrainedModel:
    config = XLMRobertaConfig(**SHAPE, max_position_embeddings=130, type_vocab_size=1, layer_norm_eps=1e-5)
    return scattered(XLMRobertaForMaskedLM(config) if with_head else XLMRobertaModel(config))


def bert(with_head: bool = False) -> PreTrainedModel:
    config = BertConfig(**SHAPE, max_position_embeddings=128, type_vocab_size=2, layer_norm_eps=1e-12)
    return scattered(BertForMaskedLM(config) if with_head else BertModel(config))


def imported(folder: Path) -> PretrainingModel:
    config = read_config(folder)
    model = PretrainingModel(config)
    missing, unexpected = model.load_state_dict(load_weights(folder, config), strict=False)
    assert unexpected == []
    assert set(missing) in ({"temperature.logarithm"}, {"temperature.logarithm", *HEAD})
    return model.eval()


def encode(model: PretrainingModel, texts: Iterable[list[int]]) -> list[Tensor]:
    """Hidden states of each text, all packed into one stream."""
    texts = list(texts)
    with torch.no_grad():
        hidden = model.encoder(
            torch.tensor([token for text in texts for token in text]),
            torch.tensor([place + 2 for text in texts for place in range(len(text))]),
            torch.tensor([0, *map(len, texts)]).cumsum(0),
            torch.tensor([len(text) for text in texts]),
        )
    return list(hidden.split([len(text) for text in texts]))


def ids_of(tokenizer_folder: Path, texts: Iterable[str] = SENTENCES) -> list[list[int]]:
    ids: list[list[int]] = AutoTokenizer.from_pretrained(tokenizer_folder)(list(texts))["input_ids"]
    assert len({len(text) for text in ids}) > 1
    return ids


def theirs(
    model: PreTrainedModel, texts: list[list[int]], width: int = 32
) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states and, where the model has a head, logits of each text, from one padded batch."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [1] * (longest - len(text)) for text in texts])
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=(ids != 1).long(), output_hidden_states=True)
    hidden = output.hidden_states[-1]
    assert hidden.shape[2] == width
    logits = output.logits if "logits" in output else hidden[:, :, :0]
    cut = [len(text) for text in texts]
    return [h[:n] for h, n in zip(hidden, cut, strict=True)], [
        x[:n] for x, n in zip(logits, cut, strict=True)
    ]


def assert_same(ours: list[Tensor], oracle: list[Tensor]) -> None:
    for a, b in zip(ours, oracle, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def logits(model: PretrainingModel, hidden: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model.head.logits(each, model.encoder.embedding.word.weight) for each in hidden]


@pytest.mark.parametrize("shards", ["50GB", "20KB"])
def test_xlmr_comes_in_with_equal_hidden_states_and_logits(
    tmp_path: Path, tokenizer_folder: Path, shards: str
) -> None:
    model = xlmr()
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "20KB")
    ours, texts = imported(tmp_path), ids_of(tokenizer_folder)
    hidden, scores = theirs(model, texts)
    assert_same(encode(ours, texts), hidden)
    assert_same(logits(ours, encode(ours, texts)), scores)
    assert load_weights(tmp_path, ours.config).keys() >= HEAD


def test_xlmr_without_a_head_comes_in_and_the_head_is_left_to_the_model(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    model = xlmr(with_head=False)
    model.save_pretrained(tmp_path)
    ours, texts = imported(tmp_path), ids_of(tokenizer_folder)
    assert_same(encode(ours, texts), theirs(model, texts)[0])
    assert not HEAD & load_weights(tmp_path, ours.config).keys()
    initial = PretrainingModel(ours.config).state_dict()
    assert all(torch.equal(ours.state_dict()[name], initial[name]) for name in HEAD)


@pytest.mark.parametrize("with_head", [False, True])
def test_bert_comes_in_with_positions_and_token_type_folded(
    tmp_path: Path, tokenizer_folder: Path, with_head: bool
) -> None:
    model = bert(with_head)
    model.save_pretrained(tmp_path)
    ours, texts = imported(tmp_path), ids_of(tokenizer_folder)
    assert ours.config.positions == 130 and ours.config.layer_norm_eps == 1e-12
    hidden, scores = theirs(model, texts)
    assert_same(encode(ours, texts), hidden)
    if with_head:
        assert_same(logits(ours, encode(ours, texts)), scores)
    else:
        assert not HEAD & load_weights(tmp_path, ours.config).keys()


def test_weights_of_16_bits_come_in_as_float32(tmp_path: Path) -> None:
    xlmr().half().save_pretrained(tmp_path)
    state = load_weights(tmp_path, read_config(tmp_path))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_ours_goes_out_and_opens_everywhere_with_equal_results(
    tmp_path: Path, tokenizer_folder: Path, small: Build
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    ours = small(torch.float32, vocabulary_size=180, positions=130).eval()
    folder = tmp_path / "export"
    write_folder(
        ours.state_dict(), ours.config, folder, tokenizer_folder=tokenizer_folder, maximum_tokens=120
    )
    texts = ids_of(folder)
    assert texts == ids_of(tokenizer_folder)
    packed = encode(ours, texts)
    hidden, scores = theirs(AutoModelForMaskedLM.from_pretrained(folder), texts)
    assert_same(packed, hidden)
    assert_same(logits(ours, packed), scores)
    assert_same(packed, theirs(AutoModel.from_pretrained(folder, add_pooling_layer=False), texts)[0])

    sentences = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert sentences.max_seq_length == 120
    wanted = torch.stack([torch.nn.functional.normalize(each.mean(0), dim=0) for each in packed])
    torch.testing.assert_close(
        sentences.encode(list(SENTENCES), convert_to_tensor=True), wanted, atol=1e-5, rtol=0
    )

    reopened = reopened_outputs(folder, SENTENCES, 120, texts_at_once=3)
    assert reopened.token_ids == texts
    assert_same([reopened.hidden], [torch.cat(packed)])
    assert_same([reopened.logits], [torch.cat(logits(ours, packed))])
    assert_same([reopened.sentence_vectors], [wanted])

    back = imported(folder)
    changed = {
        name for name, tensor in back.state_dict().items() if not torch.equal(tensor, ours.state_dict()[name])
    }
    assert changed <= {"temperature.logarithm"}


def test_exported_folder_is_complete_readable_by_all_and_sharded_on_request(
    tmp_path: Path, tokenizer_folder: Path, small: Build
) -> None:
    ours = small(torch.bfloat16, vocabulary_size=180)
    folder = tmp_path / "a" / "export"
    folder.mkdir(parents=True)  # an empty folder is no obstacle
    write_folder(
        ours.state_dict(),
        ours.config,
        folder,
        tokenizer_folder=tokenizer_folder,
        maximum_tokens=64,
        max_shard_bytes=20_000,
    )
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    } <= names
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
    assert [path.name for path in folder.parent.iterdir()] == ["export"]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["XLMRobertaForMaskedLM"] and config["dtype"] == "bfloat16"
    assert "auto_map" not in config
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            assert {opened.get_tensor(name).dtype for name in opened.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 64
    AutoModelForMaskedLM.from_pretrained(folder)


def broken(folder: Path, change: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    match change:
        case "no folder":
            shutil.rmtree(folder)
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "cut off":
            content = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        case "not JSON":
            (folder / "config.json").write_text("{")
        case "lost tensor" | "wrong shape" | "untied":
            tensors = load_file(folder / "model.safetensors")
            name = "roberta.encoder.layer.1.attention.self.key.weight"
            if change == "lost tensor":
                del tensors[name]
            elif change == "wrong shape":
                tensors[name] = tensors[name][:5].clone()
            else:
                tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"] + 1
            save_file(tensors, folder / "model.safetensors")
        case key:
            key, value = key.split("=")
            config[key] = json.loads(value)
            (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no folder", "config.json does not exist; give the folder of a Hugging Face model"),
        ("not JSON", "config.json can not be read"),
        ("no weights", "holds no model.safetensors"),
        ("pickle", r"pytorch_model.bin, which can run code .* writes model.safetensors"),
        ("cut off", "model.safetensors can not be read"),
        ("lost tensor", r"hold no encoder.layer.1.attention.self.key.weight"),
        ("wrong shape", r"key.weight is \(5, 32\), the configuration says \(32, 32\)"),
        ("untied", "lm_head.decoder.weight differs from the token table"),
        ('model_type="gpt2"', "model_type is 'gpt2'; this encoder loads xlm-roberta and bert"),
        ('hidden_act="gelu_new"', "hidden_act is 'gelu_new', this encoder has 'gelu'"),
        ("pad_token_id=0", "pad_token_id is 0, .*laid out like XLM-R's"),
        ("num_attention_heads=5", "width 32 is not divisible by 5 heads"),
    ],
)
def test_wrong_folders_are_refused_with_the_remedy(tmp_path: Path, change: str, message: str) -> None:
    folder = tmp_path / "model"
    xlmr().save_pretrained(folder)
    broken(folder, change)
    with pytest.raises(ModelError, match=message):
        load_weights(folder, read_config(folder))


def test_export_is_refused_where_it_would_harm_or_lie(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = make_config(vocabulary_size=180)
    state = PretrainingModel(config).state_dict()

    def write(name: str = "new", **changes: object) -> None:
        arguments = dict(
            state_dict=state,
            config=config,
            tokenizer_folder=tokenizer_folder,
            maximum_tokens=64,
            folder=tmp_path / name,
        )
        write_folder(**(arguments | changes))  # type: ignore[arg-type]

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("the only copy")
    with pytest.raises(ModelError, match="exists and is not empty; remove it or choose another place"):
        write("full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "the only copy"
    with pytest.raises(ModelError, match="maximum_tokens 65 is not within 3 and 64"):
        write(maximum_tokens=65)
    with pytest.raises(ModelError, match=r"holds no tokenizer.json"):
        write(tokenizer_folder=tmp_path)
    with pytest.raises(ModelError, match="not the tokenizer this model was trained with"):
        write(config=make_config(vocabulary_size=20))
    with pytest.raises(ModelError, match="hold no head.bias"):
        write(state_dict={name: tensor for name, tensor in state.items() if name != "head.bias"})
    assert not (tmp_path / "new").exists()


def test_a_real_e5_comes_in_and_leaves_as_xlmr_with_equal_hidden_states(tmp_path: Path) -> None:
    source = os.environ.get("CALQUE_TEST_MODEL")
    if not source:
        pytest.skip("CALQUE_TEST_MODEL does not name the folder of a multilingual-e5-small")
    ours, texts = imported(Path(source)), ids_of(Path(source))
    oracle = AutoModel.from_pretrained(source, dtype=torch.float32, add_pooling_layer=False)
    packed = encode(ours, texts)
    assert_same(packed, theirs(oracle, texts, width=ours.config.width)[0])
    folder = tmp_path / "export"
    write_folder(ours.state_dict(), ours.config, folder, tokenizer_folder=source, maximum_tokens=512)
    exported = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    assert exported.config.model_type == "xlm-roberta"
    assert_same(packed, theirs(exported, texts, width=ours.config.width)[0])
