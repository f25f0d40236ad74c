"""An HTTP response of a gateway, and the form of its errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Response:
    """A response: status, headers by lower-case name, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        """The error of a refusal."""
        assert set(self.json) == {"ok", "error"} and self.json["ok"] is False
        error: dict[str, str] = self.json["error"]
        assert set(error) == {"code", "field", "message"}
        return error

    @property
    def code(self) -> str:
        """The code of a refusal."""
        return self.error["code"]
