"""The answers of a batch: one line each, in the shape of OpenAI's batch API.

Source:
    https://platform.openai.com/docs/api-reference/batch/request-output
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from flux2_client.batch.endpoints import Failure, Response
from flux2_client.batch.request_line import FAULT_PREFIX, LineFault
from flux2_client.models import Result

#: How each answer begins, by which a line that was cut off is recognised.
BEGINNING: Final = b'{"id": "batch_'


@dataclass(frozen=True)
class Answer:
    """The answer to one line.

    Attributes:
        response: None if nothing was sent.
        request_id: the line's job; empty if none was accepted.
        failure: None if all images are there.
        files: where the images were saved; None if they were not.
    """

    answer_id: str
    custom_id: str | None
    response: Response | None
    request_id: str
    failure: Failure | None
    files: Sequence[Path] | None = None

    @classmethod
    def of_fault(cls, fault: LineFault) -> Self:
        return cls(fault.answer_id, fault.custom_id, None, "", Failure(fault.code, fault.message))

    @property
    def name(self) -> str:
        """What messages call the line."""
        return self.custom_id or "a line without a custom_id"

    @property
    def stored(self) -> StoredAnswer:
        """What another run would read of the answer."""
        key = _key(self.answer_id, self.custom_id)
        return StoredAnswer(key, self.answer_id, self.request_id, self.failure is None)

    def encode(self) -> bytes:
        """Return the line, with its end."""
        response = self.response and {
            "status_code": self.response.status_code,
            "request_id": self.request_id,
            "body": self.response.body,
        }
        files = {} if self.files is None else {"files": [str(path) for path in self.files]}
        fields = {
            "id": self.answer_id,
            "custom_id": self.custom_id,
            "response": response,
            "error": self.failure and self.failure._asdict(),
            **files,
        }
        # As ASCII: an id may hold half of a character, which no encoding can write.
        return json.dumps(fields).encode() + b"\n"


@dataclass(frozen=True)
class StoredAnswer:
    """What a batch needs to know of an answer that an earlier run wrote; `key` names its line."""

    key: str
    answer_id: str
    request_id: str
    succeeded: bool

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line of a file of answers.

        Raises:
            ValueError: the line is not an answer.
        """
        fields = json.loads(line)
        if not isinstance(fields, dict) or not line.startswith(BEGINNING):
            raise ValueError("the line is no answer of a batch")
        response: Mapping[str, Any] = fields.get("response") or {}
        answer_id = str(fields["id"])
        return cls(
            key=_key(answer_id, fields.get("custom_id")),
            answer_id=answer_id,
            request_id=str(response.get("request_id") or ""),
            succeeded=fields.get("error") is None,
        )


def id_key(custom_id: str) -> str:
    """Return the key of the line with a custom_id, which every database can store."""
    return json.dumps(custom_id)


def _key(answer_id: str, custom_id: str | None) -> str:
    # The second line with a custom_id must not be taken for the first.
    is_fault = answer_id.startswith(FAULT_PREFIX) or custom_id is None
    return answer_id if is_fault else id_key(custom_id or "")


def find_failure(result: Result[Any]) -> Failure | None:
    """Return why a job that has ended did not succeed; None if it did."""
    if result.status == "succeeded":
        return None
    if not result.errors:
        return Failure("canceled", result.error or f"request {result.request_id} was canceled")
    first = result.errors[0]
    rest = f"; GET /v1/requests/{result.request_id}/result has the other images" if result.images else ""
    return Failure(first.code, f"{first.message}{rest}")
