"""What ``cohort.label`` is told: the reports and the policies, and how each labeller works."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from cohort.config import hub_or_path, path, require_values
from cohort.errors import TailfillError, nearest
from cohort.stage import hash_bytes
from cohort.vocabulary.labels import LABEL_SPACES, LabelSpace
from cohort.vocabulary.phrases import CUES, PHRASES, wordings_of_reports

VOCABULARY = "vocabulary"
"""Name of the label space of all findings that rules know, ``No Finding`` and ``Normal`` with them."""


@dataclass(frozen=True, kw_only=True)
class ReportsConfig:
    """The reports, and what becomes of what they say."""

    reports: str = path()
    """CSV of the reports, one a row, or a folder of ``.txt`` files, whose names are the ids."""
    id_column: str = "report_id"
    """The report's id in the CSV, and in that of the images; unique in the first."""
    text_column: str = "text"
    """The report's text in the CSV."""
    images: str | None = path(None)
    """CSV of the images, with the id of each one's report; labels.csv then has a row per image."""
    label_space: str = "cxr_lt_2024"
    """The labels to give, by the name of their space; ``vocabulary`` for all that there are rules for."""
    uncertain: Literal["u-ignore", "u-ones", "u-zeros"] = "u-ignore"
    """What an uncertain finding becomes: unknown, 1 or 0 (Irvin et al. 2019)."""
    unmentioned: Literal["absent", "unknown"] = "absent"
    """What a finding becomes that the report does not speak of; ``absent`` is the common reading."""

    def __post_init__(self) -> None:
        if self.label_space not in (VOCABULARY, *LABEL_SPACES):
            legal = [VOCABULARY, *LABEL_SPACES]
            raise TailfillError(f"label_space is '{self.label_space}'{nearest(self.label_space, legal)}")
        require_values("", id_column=(self.id_column, bool(self.id_column.strip()), "a column's name"),
                       text_column=(self.text_column, self.text_column.strip() not in ("", self.id_column),
                                    "a column's name, and not that of the ids"))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of their columns."""
        if self.label_space == VOCABULARY:
            return LabelSpace(name=VOCABULARY, labels=(*wordings_of_reports(), "No Finding")).labels
        return LABEL_SPACES[self.label_space].labels

    def settings(self) -> dict[str, object]:
        """What decides the labels, the files apart."""
        return {key: value for key, value in asdict(self).items() if key not in ("reports", "images")}


CODE = ("sections.py", "rules.py", "cues.py", "deriving.py")
"""Modules beside this one that the rules are made of, beside their data."""


@dataclass(frozen=True, kw_only=True)
class RulesConfig:
    """The rule-based labeller: its phrases and cues are data files of ``cohort.vocabulary``; nothing is to be set."""

    def settings(self) -> dict[str, object]:
        """What decides the answers: the hash of the data files, and of the code that reads them."""
        files = [PHRASES, CUES, PHRASES.with_name("phrases.py"), *(Path(__file__).with_name(name) for name in CODE)]
        return {"rules": hash_bytes(b"".join(file.read_bytes() for file in files))}


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What both ways to a language model share."""

    style: Literal["direct", "nli", "cot"] = "direct"
    """How to ask: for the findings; natural-language inference, a hypothesis each; chain of thought, then findings."""
    findings_per_request: int = 0
    """How many findings one request asks for; 0 for all at once, 1 for inference in its strict sense. 0 or more."""
    tries: int = 3
    """How often a report is asked about until the answer is valid; each time the fault is named. 1 to 10."""
    cache: str | None = path(None)
    """Folder of the answers that were valid, shared by any labellings; default: ``cache/labels`` beside the output."""

    def __post_init__(self) -> None:
        n_findings = self.findings_per_request
        require_values("", findings_per_request=(n_findings, n_findings >= 0, "0 or more"),
                       tries=(self.tries, 1 <= self.tries <= 10, "1 to 10"))


@dataclass(frozen=True, kw_only=True)
class TransformersConfig(PromptConfig):
    """A language model that runs here, by transformers' text generation; greedy, so nothing is drawn at random."""

    model: str = hub_or_path()
    """A folder with weights and tokenizer of a causal language model, or an id on the model hub."""
    revision: str | None = None
    """Commit or branch of a model on the hub; null for its newest."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; ``auto`` is the one that they were saved in."""
    max_new_tokens: int = 1024
    """Tokens that an answer may have; a longer one is cut, hence not valid. 16 to 32768."""
    batch_size: int = 4
    """Reports asked about at the same time. 1 to 1024."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_values("", model=(self.model, bool(self.model.strip()), "a folder or an id on the model hub"),
                       max_new_tokens=(self.max_new_tokens, 16 <= self.max_new_tokens <= 32768, "16 to 32768"),
                       batch_size=(self.batch_size, 1 <= self.batch_size <= 1024, "1 to 1024"))

    def settings(self) -> dict[str, object]:
        """What decides the answers, the weights apart."""
        return {key: getattr(self, key) for key in ("style", "findings_per_request", "tries", "dtype",
                                                    "max_new_tokens")}


@dataclass(frozen=True, kw_only=True)
class EndpointConfig(PromptConfig):
    """A language model behind an OpenAI-compatible chat endpoint (``URL/chat/completions``)."""

    url: str
    """Base address, as ``http://localhost:8000/v1``; no name, password or query in it."""
    model: str
    """The model's name there."""
    api_key_variable: str | None = None
    """Environment variable that holds the key, which is sent and never written; null sends none."""
    response_format: Literal["none", "json_object", "json_schema"] = "none"
    """Whether the server is asked to hold the answer to JSON, or to the very schema; not every server can."""
    temperature: float = 0.0
    """Sampling temperature, 0 to 2; at 0 most servers answer the same again."""
    max_tokens: int = 1024
    """Tokens that an answer may have. 16 to 32768."""
    timeout_seconds: float = 60.0
    """How long one request may take; above 0."""
    attempts: int = 4
    """How often a request is sent that fails on the way (no connection, timeout, 408, 429, 5xx). 1 to 20."""
    backoff_seconds: float = 1.0
    """Wait before the second attempt; it doubles each time. 0 or more."""
    max_wait_seconds: float = 60.0
    """The longest wait, that asked for by the server (``Retry-After``) included. 0 or more."""
    concurrency: int = 4
    """Requests at the same time. 1 to 256."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = urlsplit(self.url)
        is_plain = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        if not is_plain or "@" in parts.netloc:  # important: not repeated in the message, it may hold a password
            raise TailfillError("url is no plain address; wanted: http(s)://HOST[:PORT]/v1 without name, password or "
                                "query; the key goes into an environment variable")
        variable = self.api_key_variable
        if variable is not None and not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", variable):
            raise TailfillError("api_key_variable is no name of an environment variable; wanted: as OPENAI_API_KEY, "
                                "not the key itself")
        require_values("", model=(self.model, bool(self.model.strip()), "the model's name at the endpoint"),
                       temperature=(self.temperature, 0 <= self.temperature <= 2, "0 to 2"),
                       max_tokens=(self.max_tokens, 16 <= self.max_tokens <= 32768, "16 to 32768"),
                       timeout_seconds=(self.timeout_seconds, self.timeout_seconds > 0, "above 0"),
                       attempts=(self.attempts, 1 <= self.attempts <= 20, "1 to 20"),
                       backoff_seconds=(self.backoff_seconds, self.backoff_seconds >= 0, "0 or more"),
                       max_wait_seconds=(self.max_wait_seconds, self.max_wait_seconds >= 0, "0 or more"),
                       concurrency=(self.concurrency, 1 <= self.concurrency <= 256, "1 to 256"))

    def settings(self) -> dict[str, Any]:
        """What decides the answers; not how patiently they are asked for."""
        return {key: getattr(self, key) for key in ("style", "findings_per_request", "tries", "url", "model",
                                                    "response_format", "temperature", "max_tokens")}
