"""What the tests of ``cohort.label`` share: reports of our own, and a chat endpoint that behaves as badly as asked."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd

from cohort.labelling.deriving import asked_findings
from cohort.vocabulary.labels import CHEXPERT

KEY = "sk-very-secret-4711"
NAMES = asked_findings(CHEXPERT.labels)
STALL_SECONDS = 1.0


def write_reports(file: Path, texts: dict[str, str], **columns: Sequence[object]) -> Path:
    """A CSV of reports."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"report_id": list(texts), "text": list(texts.values()), **columns}).to_csv(file, index=False)
    return file


def case(name: str) -> str:
    """A report that tells the fake endpoint how to behave."""
    return f"INDICATION: Pneumonia?\n\nFINDINGS: The case-{name} shows a small left pleural effusion."


def right_answer(names: Sequence[str] = NAMES, **statuses: str) -> str:
    """A valid answer: effusion present, all else absent."""
    answers = dict.fromkeys(names, "absent") | {name: "present" for name in names if name == "Pleural Effusion"}
    return json.dumps({"answers": answers | statuses, "quotes": {"Pleural Effusion": "Small left   pleural effusion"}})


class Handler(BaseHTTPRequestHandler):
    """Answers by the case that a report names."""

    server: "Fake"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """One chat completion, or whatever the case asks for the first time (``once``) or always."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        name = re.search(r"case-([\w-]+)", prompt)[1]
        with self.server.lock:
            self.server.seen[name] += 1
            self.server.bodies.append(body)
            first = self.server.seen[name] == 1
        fault = name.removesuffix("-once") if first or not name.endswith("-once") else "right"
        names = re.findall(r'^- ([^:\n]+):', prompt, re.MULTILINE)
        self.misbehave(fault, names, prompt[prompt.rfind("<<<"):])

    def misbehave(self, fault: str, names: Sequence[str], prompt: str) -> None:
        """The answer of a case."""
        if fault.startswith("state"):
            echo = f"your header was {self.headers.get('Authorization')}"
            echo = prompt if fault.endswith("-echo") else echo
            self.reply(int(fault[5:8]), json.dumps({"error": echo}).encode(),
                       {"Retry-After": "0"} if fault == "state429" else {})
        elif fault == "moved":
            self.reply(307, b"", {"Location": f"http://127.0.0.1:{self.server.server_port}/elsewhere"})
        elif fault == "page":
            self.reply(200, f"<html><body>{prompt}</body></html>".encode())
        elif fault == "body":
            self.reply(200, b'{"choices": [{"message": {"con')
        elif fault == "short":
            self.reply(200, b'{"choices"', {"Content-Length": "500"})
        else:
            if fault == "stall":
                time.sleep(STALL_SECONDS)
            says = {"nonsense": "I see a chest.", "cut": right_answer(names)[:40], "echo": f"My key is {KEY}."}
            content = says.get(fault, right_answer(names))
            self.reply(200, json.dumps({"choices": [{"message": {"content": content}}]}).encode())

    def reply(self, state: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """A whole response; the client may have left."""
        try:
            self.send_response(state)
            for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self.close_connection = True


class Fake(ThreadingHTTPServer):
    """The endpoint, and what it has been asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.seen, self.bodies = threading.Lock(), Counter[str](), list[dict]()

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def fake_endpoint() -> Iterator[Fake]:
    """A chat endpoint on this machine while the block runs."""
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
