"""A language model that runs here, by transformers' text generation.

Greedy, so that the same question has the same answer; nothing is drawn at random. A question that would not fit the
model's context together with its answer is a failed one, never cut. A model without a chat template is given the turns
as plain text. Code that comes with a model is not run.

Not promised: that another batch size or device gives the same words; floating-point sums differ in their last bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cohort.errors import TailfillError
from cohort.labelling.asking import NoReplyError
from cohort.labelling.prompting import Messages
from cohort.labelling.settings import TransformersConfig
from cohort.stage import hash_folder


class LocalModel:
    """The model as something that can be asked (``cohort.labelling.asking.Model``)."""

    def __init__(self, config: TransformersConfig) -> None:
        """Load tokenizer and weights; raises ``TailfillError`` where they cannot be."""
        self.config, self.at_once = config, config.batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        named: dict[str, Any] = {} if config.revision is None else {"revision": config.revision}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(config.model, padding_side="left", **named)
            model: Any = AutoModelForCausalLM.from_pretrained(config.model, dtype=_dtype(config.dtype), **named)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise TailfillError(f"model '{config.model}': is no causal language model that loads: {reason}") from error
        self.model = model.to(self.device).eval()
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if self.tokenizer.pad_token_id is None:
            raise TailfillError(f"model '{config.model}': its tokenizer has neither a padding nor an end token")
        context = getattr(self.model.config, "max_position_embeddings", None)
        self.context = int(context) if context else None
        if self.context is not None and config.max_new_tokens >= self.context:
            raise TailfillError(f"max_new_tokens is {config.max_new_tokens}; wanted: less than the {self.context} "
                                f"tokens that '{config.model}' can see")
        self.identity: Mapping[str, Any] = {"weights": self._weights(), "dtype": config.dtype,
                                            "max_new_tokens": config.max_new_tokens}

    def _weights(self) -> str:
        """What says which weights these are: the hash of a folder, or name and commit of a model on the hub."""
        folder = Path(self.config.model)
        if folder.is_dir():
            return hash_folder(folder)
        commit = getattr(self.model.config, "_commit_hash", None)
        return f"{self.config.model}@{commit or self.config.revision or 'unknown'}"

    def replies(self, questions: Sequence[tuple[Messages, Sequence[str]]]) -> Iterator[tuple[int, str | NoReplyError]]:
        """Position and answer of each question, all at once."""
        prompts = [self._prompt(messages) for messages, _ in questions]
        lengths = [len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts]
        fitting = []
        for at, length in enumerate(lengths):
            if self.context is not None and length + self.config.max_new_tokens > self.context:
                yield at, NoReplyError(f"the question has {length} tokens, which with {self.config.max_new_tokens} "
                                       f"for the answer is more than the model's {self.context}")
            else:
                fitting.append(at)
        if fitting:
            yield from zip(fitting, self._generate([prompts[at] for at in fitting]), strict=True)

    def _prompt(self, messages: Messages) -> str:
        if self.tokenizer.chat_template:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in messages) + "\n\nassistant: "

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[str]) -> list[str]:
        # the template has written the special tokens already
        batch = self.tokenizer(list(prompts), return_tensors="pt", padding=True, add_special_tokens=False)
        batch = {key: batch[key].to(self.device) for key in ("input_ids", "attention_mask")}
        made = self.model.generate(**batch, max_new_tokens=self.config.max_new_tokens, do_sample=False, num_beams=1,
                                   temperature=None, top_p=None, top_k=None,
                                   pad_token_id=self.tokenizer.pad_token_id)
        length = batch["input_ids"].shape[1]
        return [str(text) for text in self.tokenizer.batch_decode(made[:, length:], skip_special_tokens=True)]


def _dtype(name: str) -> Any:
    return name if name == "auto" else getattr(torch, name)
