"""A language model behind an OpenAI-compatible chat endpoint: plain HTTP, patient within bounds, and discreet.

A request that fails on the way (no connection, a timeout, 408, 429, 5xx, a body that is cut) is sent again after a wait
that doubles, or that the server asks for, ``attempts`` times in all; then its report is a failed one. An answer of 400
or 422 fails that report alone, at once. 401, 403, 404 and the like concern every report, so the run stops; so it does
when ``GIVE_UP_AFTER`` requests in a row have failed on the way: what was answered is in the cache.

What a server says of a failure is told, unless it repeats the question: a report belongs into no log and no table.

The key is read from the environment when the model is made. It goes into one header, never into a log, a message, a
table or a cache; should the server write it back, it is blotted out. Redirects are not followed: they could lead the
key, and the report, elsewhere.

Not promised: that a report may leave the house. An address that is not this machine's is announced, as is a key that
travels unencrypted.
"""

import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import IO, Any
from urllib.parse import urlsplit

from cohort.errors import TailfillError
from cohort.labelling.asking import NoReplyError
from cohort.labelling.prompting import Messages, answer_schema
from cohort.labelling.settings import EndpointConfig

log = logging.getLogger(__name__)

AGAIN = frozenset((408, 425, 429, *range(500, 600)))
"""States of HTTP after which the same request may succeed."""
THIS_ONE = frozenset((400, 413, 422))
"""States that speak of this request alone: too long, say. All others speak of all of them."""
GIVE_UP_AFTER = 20
"""Requests that fail on the way one after another before the run stops; chosen because a server's restart passes it."""
MOST_BYTES = 1 << 24
"""The longest answer that is read."""
REPEATS = "(its words repeat the question, and are left out)"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Endpoint:
    """The model as something that can be asked (``cohort.labelling.asking.Model``)."""

    def __init__(self, config: EndpointConfig) -> None:
        """Read the key; raises ``TailfillError`` naming its variable where it is not set, or no key."""
        self.config = config
        self.identity: Mapping[str, Any] = {key: value for key, value in config.settings().items()
                                            if key not in ("style", "findings_per_request", "tries")}
        self.at_once = 16 * config.concurrency
        self._key = read_key(config.api_key_variable)
        self._lost_in_a_row = 0
        self._opener = urllib.request.build_opener(_NoRedirect)
        host = urlsplit(config.url)
        if host.hostname not in LOOPBACK:
            log.warning("label: reports are sent to %s%s", host.hostname,
                        ", and the key unencrypted" if self._key and host.scheme == "http" else "")

    def replies(self, questions: Sequence[tuple[Messages, Sequence[str]]]) -> Iterator[tuple[int, str | NoReplyError]]:
        """Position and answer of each question as they come; raises ``TailfillError`` where going on is vain."""
        pool = ThreadPoolExecutor(self.config.concurrency)
        try:
            waiting = {pool.submit(self._ask, messages, names): at for at, (messages, names) in enumerate(questions)}
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, messages: Messages, names: Sequence[str]) -> str | NoReplyError:
        """The answer's text, or why there is none."""
        reason = ""
        for attempt in range(self.config.attempts):
            try:
                answer = self._send(messages, names)
            except urllib.error.HTTPError as error:
                reason = self._discreet(f"HTTP {error.code}: {_excerpt(error, messages)}")
                if error.code in THIS_ONE:
                    return NoReplyError(reason)
                if error.code not in AGAIN:
                    raise TailfillError(f"{self.config.url}: answers {reason}; wanted: a chat endpoint that knows the "
                                        f"model '{self.config.model}' and takes the key") from None
                asked = retry_after(error.headers.get("Retry-After"), now=datetime.now(UTC))
            except (OSError, HTTPException, _NoAnswerError) as error:
                kind = "" if isinstance(error, _NoAnswerError) else f"{type(error).__name__}: "
                words = REPEATS if repeats(str(error), messages) else str(error)
                reason, asked = self._discreet(f"{kind}{words}"), None
            else:
                self._lost_in_a_row = 0
                return answer
            if attempt + 1 < self.config.attempts:
                wait = self.config.backoff_seconds * 2**attempt if asked is None else asked
                time.sleep(min(wait, self.config.max_wait_seconds))
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= GIVE_UP_AFTER:
            raise TailfillError(f"{self.config.url}: {GIVE_UP_AFTER} requests in a row got no answer: {reason}; "
                                "what was answered before is kept, so give the same command again")
        return NoReplyError(f"no answer in {self.config.attempts} attempts: {reason}")

    def _send(self, messages: Messages, names: Sequence[str]) -> str:
        """One request; raises what urllib raises, and ``_NoAnswerError`` for a body that is no chat completion."""
        config = self.config
        body: dict[str, Any] = {"model": config.model, "messages": messages, "temperature": config.temperature,
                                "max_tokens": config.max_tokens}
        if config.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        elif config.response_format == "json_schema":
            schema = answer_schema(names, style=config.style)
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "labels", "schema": schema}}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(f"{config.url.rstrip('/')}/chat/completions", method="POST", headers=headers,
                                         data=json.dumps(body).encode())
        end = time.monotonic() + config.timeout_seconds
        with self._opener.open(request, timeout=config.timeout_seconds) as response:
            content = _read(response, end=end)
        return self._discreet(read_completion(content))

    def _discreet(self, text: str) -> str:
        """A text without the key."""
        return text.replace(self._key, "[key]") if self._key else text


def read_key(variable: str | None) -> str | None:
    """The key in an environment variable; raises ``TailfillError`` naming it where it is not set, or no key."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "is not set" if not key else "holds no key (blanks, or other than ASCII)"
        raise TailfillError(f"api_key_variable: the environment variable {variable} {state}; wanted: the key")
    return key


def read_completion(content: bytes) -> str:
    """The text in a chat completion; raises ``_NoAnswerError`` for anything else."""
    try:
        answer = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise _NoAnswerError(f"its body is no chat completion: {content[:80].decode(errors='replace')}") from error
    if not isinstance(answer, str):
        raise _NoAnswerError("its body is a chat completion without text")
    return answer


def retry_after(header: str | None, *, now: datetime) -> float | None:
    """Seconds that a server asks to wait, as a number or a date; None where it does not, or not legibly."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())


class _NoAnswerError(Exception):
    """A body that holds no answer."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        """Follow nothing: urllib then raises the redirect as an error."""


def _read(response: IO[bytes], *, end: float) -> bytes:
    """The whole body; raises ``TimeoutError`` at ``end`` (monotonic seconds), however slowly a server drips."""
    parts, size = [], 0
    while part := response.read1(1 << 16):  # type: ignore[attr-defined]
        parts.append(part)
        size += len(part)
        if time.monotonic() > end:
            raise TimeoutError("the answer did not end in time")
        if size > MOST_BYTES:
            raise _NoAnswerError(f"its body has more than {MOST_BYTES:,} bytes")
    return b"".join(parts)


def repeats(words: str, messages: Messages) -> bool:
    """Whether a server's words hold four in a row of the question, which holds the report."""
    own, asked = ([re.findall(r"[^\W_]+", text.lower()) for text in texts]
                  for texts in ((words,), [turn["content"] for turn in messages]))
    runs = [{tuple(text[at:at + 4]) for text in texts for at in range(len(text) - 3)} for texts in (own, asked)]
    return not runs[0].isdisjoint(runs[1])


def _excerpt(error: urllib.error.HTTPError, messages: Messages) -> str:
    try:
        words = error.read(2000).decode(errors="replace")
    except (OSError, HTTPException):
        words = ""
    words = " ".join(words.split())[:200]
    return REPEATS if repeats(words, messages) else words or str(error.reason)
