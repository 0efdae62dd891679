"""A judge behind an OpenAI-compatible endpoint: ``POST {url}/chat/completions``."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from threading import Event
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.judge import Verdict

_TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_LONGEST_WAIT = 300.0
_ANSWER = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


class EndpointJudge:
    """A chat model over HTTP, asked at temperature 0.

    What may pass (time-outs, broken connections, rate limits, server errors, malformed replies) is
    tried again, after what the server's Retry-After says or after waits that double.

    Args:
        url: Up to and including ``/v1``.
        model: Name of the model there.
        key: Sent as a bearer token, if there is one.
        tokens: Most tokens of an answer.
        concurrency: Requests under way at a time.
        timeout: Seconds that the server may be silent.
        attempts: Tries per prompt.
        wait: Seconds before the second try.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None,
        tokens: int,
        concurrency: int,
        timeout: float,
        attempts: int = 7,
        wait: float = 1.0,
    ):
        self.name = model
        self._url = url.rstrip("/") + "/chat/completions"
        self._key, self._tokens = key, tokens
        self._concurrency, self._timeout = concurrency, timeout
        self._attempts, self._wait = attempts, wait
        self._stopped = Event()

    def settings(self) -> dict[str, Any]:
        """Model and length of the answer; the same model may move to another address."""
        return {"model": self.name, "by": "endpoint", "temperature": 0, "tokens": self._tokens}

    def description(self) -> dict[str, Any]:
        """The settings and the address."""
        return self.settings() | {"url": self._url}

    def ask(self, prompts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        """Answer every prompt; see ``Judge.ask``."""
        self._stopped.clear()
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            waiting = {pool.submit(self._answer, text): n for n, text in enumerate(prompts)}
            for future in as_completed(list(waiting)):
                if future.exception():
                    break
                yield waiting.pop(future), future.result()
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        ended = [future for future in waiting if not future.cancelled()]
        # First the answers that came in while another prompt failed: they are paid for too.
        for future in sorted(ended, key=lambda future: future.exception() is not None):
            yield waiting[future], future.result()

    def _answer(self, prompt: str) -> Verdict:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(self._url, json.dumps(body).encode(), headers)
        for attempt in range(1, self._attempts + 1):
            try:
                return self._try(request)
            except _Trouble as trouble:
                doubled = self._wait * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
                last = not trouble.may_pass or attempt == self._attempts
                # Nobody waits for this answer if another prompt has failed in the meantime.
                if last or self._stopped.wait(doubled if trouble.wait is None else trouble.wait):
                    raise InputError(
                        f"--judge-url {self._url}: model {self.name} gives no answer after "
                        f"{attempt} attempts ({trouble}); check address, model and key, then run "
                        "the same command again: answers received so far are kept"
                    ) from None
        raise AssertionError("no attempt was made")

    def _try(self, request: Request) -> Verdict:
        """One attempt; all that can go wrong with it is a ``_Trouble``."""
        try:
            with urlopen(request, timeout=self._timeout) as response:
                return self._read(response.read())
        except HTTPError as error:
            raise _Trouble(
                f"HTTP {error.code} {_body(error)}".strip(),
                may_pass=error.code in _TRANSIENT,
                wait=_retry_after(error.headers),
            ) from None
        except (OSError, HTTPException) as error:  # URLError and time-outs are OSErrors
            said = str(getattr(error, "reason", error)) or type(error).__name__
            raise _Trouble(said) from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Trouble(f"not a chat completion: {error!r}") from None

    def _read(self, reply: bytes) -> Verdict:
        fields = json.loads(reply)
        said = fields["choices"][0]["message"]["content"] or ""
        found = _ANSWER.match(said.rpartition("</think>")[2])
        yes = None if found is None else found[1].lower() == "yes"
        return Verdict(yes=yes, said=said[-200:], by=str(fields.get("model", self.name)))


class _Trouble(Exception):
    """Why an attempt gave no answer.

    Args:
        reason: In words.
        may_pass: Whether another attempt can do better.
        wait: Seconds that the server asks to wait before it.
    """

    def __init__(self, reason: str, *, may_pass: bool = True, wait: float | None = None):
        super().__init__(reason)
        self.may_pass, self.wait = may_pass, wait


def _body(error: HTTPError) -> str:
    """The beginning of what the server says about an error, in one line."""
    with error, suppress(OSError, HTTPException):
        return " ".join(error.read(500).decode(errors="replace").split())
    return ""


def _retry_after(headers: Message) -> float | None:
    """Seconds that the server asks to wait: a number, or a date (RFC 9110, 10.2.3)."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _LONGEST_WAIT)
