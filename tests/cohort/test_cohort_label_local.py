"""Language models that run here: one built to say what is right, one of random weights, some that cannot be used."""

from pathlib import Path

import pandas as pd
import torch
from cohort_toys import run_as_command
from label_toys import right_answer, write_reports
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cohort.label import main
from cohort.vocabulary.labels import CHEXPERT


def planted_model(folder: Path, answer: str | None, *, context: int = 4096) -> Path:
    """A tiny Llama that says ``answer``, one token of its tokenizer, then stops; None: random weights."""
    vocabulary = {"<unk>": 0, "</s>": 1, "<pad>": 2, answer or "blah": 3}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=context, eos_token_id=1, pad_token_id=2, bos_token_id=None,
            tie_word_embeddings=False))
    if answer is not None:
        with torch.no_grad():
            for layer in model.model.layers:  # nothing is added to the embedding: it decides what is said next
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.zero_()[:, 0] = 1.0
            model.model.embed_tokens.weight[3] = torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0])
            model.lm_head.weight.zero_()[3, 0] = 10.0
            model.lm_head.weight[1, 1] = 10.0
    model.save_pretrained(folder)
    return folder


def test_a_model_that_runs_here_says_what_it_was_built_to_say(tmp_path: Path) -> None:
    planted_model(tmp_path / "model", right_answer())
    texts = {f"r{i}": f"FINDINGS: Small left pleural effusion, {'and ' * i} that is all." for i in range(5)}
    file = write_reports(tmp_path / "reports.csv", texts | {"long": "FINDINGS: " + "word " * 4000})
    assert run_as_command(main, "transformers", "--model", tmp_path / "model", "--reports", file,
                          "--label_space", "chexpert", "--max_new_tokens", "16", "--batch_size", "2",
                          "--out", tmp_path / "out") == 0
    table = pd.read_parquet(tmp_path / "out" / "labels.parquet").set_index("report_id")
    assert table.loc[list(texts), "Pleural Effusion"].eq(1).all()
    assert table.loc[list(texts), "Edema"].eq(0).all()
    assert "more than the model's 4096" in table.loc["long", "reason"]
    assert len(list((tmp_path / "cache" / "labels").rglob("*.json"))) == len(texts)


def test_a_random_model_labels_nothing_by_chance(tmp_path: Path) -> None:
    planted_model(tmp_path / "model", None)
    file = write_reports(tmp_path / "reports.csv", {"a": "FINDINGS: Effusion."})
    assert run_as_command(main, "transformers", "--model", tmp_path / "model", "--reports", file,
                          "--label_space", "chexpert", "--max_new_tokens", "16", "--tries", "2",
                          "--out", tmp_path / "out") == 0
    table = pd.read_parquet(tmp_path / "out" / "labels.parquet")
    assert table["reason"].str.startswith("no valid answer in 2 tries").all()
    assert table[list(CHEXPERT.labels)].isna().all(axis=None)


def test_a_model_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    file = write_reports(tmp_path / "reports.csv", {"a": "FINDINGS: Effusion."})
    (tmp_path / "none").mkdir()
    tiny = planted_model(tmp_path / "tiny", None, context=64)
    for folder in (tmp_path / "none", tiny):
        assert run_as_command(main, "transformers", "--model", folder, "--reports", file,
                              "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
