"""What the server says: JSON, and the sentence of an error."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


class Refused(Exception):
    """A request that is not served: its status, a sentence for people, and what else goes into the answer's head."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, status, {"cache-control": "no-store", **(headers or {})}, "application/json")


def refusal(error: Refused) -> Response:
    return answer({"error": error.sentence}, error.status, error.headers)


def unavailable(sentence: str) -> Refused:
    return Refused(503, sentence, retry_after="1")
