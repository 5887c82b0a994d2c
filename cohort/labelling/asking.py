"""Every report asked about until its answer is valid, remembered, and never asked about again.

An answer that is valid goes into a cache at once: a file per question under a hash of the report's text, the findings,
the prompt's version, and what the model is. So a run that was killed goes on where it stopped, and another labelling
with the same model costs nothing. An answer that is not valid is sent back with its fault, ``tries`` times in all; then
the report is a failed one, with the reason, and no label of it is guessed.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from cohort.labelling.prompting import (
    InvalidAnswerError,
    Messages,
    ask,
    parse_answer,
    prompt_version,
    readable_part,
    repair,
    to_mentions,
)
from cohort.labelling.rules import Mention
from cohort.labelling.settings import PromptConfig
from cohort.stage import hash_bytes, write_atomically

log = logging.getLogger(__name__)


class NoReplyError(Exception):
    """A question that got no answer at all, and why."""


class Model(Protocol):
    """What can be asked."""

    identity: Mapping[str, Any]
    """What decides its answers: name, weights, settings; part of the cache's keys."""
    at_once: int
    """How many questions to give it at a time."""

    def replies(self, questions: Sequence[tuple[Messages, Sequence[str]]]) -> Iterator[tuple[int, str | NoReplyError]]:
        """Position and answer of each question, a conversation and its findings, as they come."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A report and the findings that one request asks for."""

    report_id: str
    text: str
    """The report's readable part."""
    names: tuple[str, ...]


@dataclass(kw_only=True)
class Answered:
    """What is known of one report."""

    statuses: dict[str, str]
    quotes: dict[str, str]
    reason: str | None = None
    """Why the report has no labels."""


def ask_reports(
    reports: Mapping[str, str], names: Sequence[str], model: Model, *, config: PromptConfig, cache: Path
) -> dict[str, list[Mention] | str]:
    """Mentions by report id, or why there are none; ``reports``: id to text; raises what the model raises."""
    questions = _make_questions(reports, names, config.findings_per_request)
    found: dict[str, list[Mention] | str] = {}
    unread = reports.keys() - {question.report_id for question in questions}
    answered: dict[str, Answered] = {}
    for question, result in _ask_all(questions, model, config=config, cache=cache):
        entry = answered.setdefault(question.report_id, Answered(statuses={}, quotes={}))
        if isinstance(result, str):
            entry.reason = entry.reason or result
        else:
            entry.statuses |= result[0]
            entry.quotes |= result[1]
    for report_id, text in reports.items():
        if report_id in unread:
            found[report_id] = NOTHING_TO_READ
            continue
        entry = answered[report_id]
        found[report_id] = entry.reason or to_mentions(
            text, {name: entry.statuses[name] for name in names if name in entry.statuses}, entry.quotes,
            rule=f"prompt {config.style} {prompt_version(config.style)}")
    return found


NOTHING_TO_READ = "no part of the report speaks of the picture (findings, impression)"


def _make_questions(reports: Mapping[str, str], names: Sequence[str], at_once: int) -> list[Question]:
    step = at_once or len(names)
    parts = [tuple(names[start:start + step]) for start in range(0, len(names), step)]
    readable = {report_id: readable_part(text) for report_id, text in reports.items()}
    return [Question(report_id=report_id, text=text, names=part)
            for report_id, text in readable.items() if text for part in parts]


Result = tuple[dict[str, str], dict[str, str]] | str
"""Statuses and quotes by finding, or why there are none."""


def _ask_all(
    questions: Sequence[Question], model: Model, *, config: PromptConfig, cache: Path
) -> Iterator[tuple[Question, Result]]:
    """Every question with its result, those from the cache at no cost."""
    with tqdm(total=len(questions), desc="label", unit="request", mininterval=1.0) as bar:
        for part in _in_parts(questions, max(model.at_once, 1)):
            for question, result in _ask_part(part, model, config=config, cache=cache):
                bar.update()
                yield question, result


def _ask_part(
    part: Sequence[Question], model: Model, *, config: PromptConfig, cache: Path
) -> Iterator[tuple[Question, Result]]:
    waiting: list[tuple[Question, Path, Messages]] = []
    for question in part:
        file = cache_file(cache, question, model.identity, style=config.style)
        known = _read_cache(file, question, style=config.style)
        if known is None:
            waiting.append((question, file, ask(question.text, question.names, style=config.style)))
        else:
            yield question, known
    for number in range(config.tries):
        again = []
        for at, reply in model.replies([(messages, question.names) for question, _, messages in waiting]):
            question, file, messages = waiting[at]
            if isinstance(reply, NoReplyError):
                yield question, str(reply)
                continue
            try:
                result = parse_answer(reply, question.names, style=config.style)
            except InvalidAnswerError as error:
                if number + 1 == config.tries:
                    yield question, f"no valid answer in {config.tries} tries: {error}"
                again.append((question, file, repair(messages, reply, str(error))))
                continue
            entry = _entry(question, model.identity, config.style) | {"answer": reply}
            write_atomically(file, json.dumps(entry).encode())
            yield question, result
        waiting = again
        if not waiting:
            return


def cache_file(cache: Path, question: Question, identity: Mapping[str, Any], *, style: str) -> Path:
    """Where the answer to a question stands."""
    key = hash_bytes(json.dumps(_entry(question, identity, style), sort_keys=True).encode())
    return cache / key[:2] / f"{key}.json"


def _entry(question: Question, identity: Mapping[str, Any], style: str) -> dict[str, Any]:
    """What a cached answer is an answer to."""
    return {"text_sha256": hash_bytes(question.text.encode()), "findings": list(question.names),
            "prompt": prompt_version(style), "style": style, "model": dict(identity)}


def _read_cache(file: Path, question: Question, *, style: str) -> Result | None:
    """The result in a cached file; None where there is none, or one that something has broken."""
    if not file.is_file():
        return None
    try:
        return parse_answer(json.loads(file.read_text(encoding="utf-8"))["answer"], question.names, style=style)
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("label: %s: is no answer (%s); asked again", file, error)
        return None


def _in_parts(questions: Sequence[Question], size: int) -> Iterable[Sequence[Question]]:
    return (questions[start:start + size] for start in range(0, len(questions), size))
