"""A vision-language model as the judge, behind any server of the OpenAI protocol (`/v1/chat/completions`).

One question a frame; an answer is parsed, cached and never asked for again. A question fails after five tries
and is then missing: nothing here waits or loops without end.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from editverse_rt.errors import BackendError, RequestError
from editverse_rt.evaluate.judging import (
    PROFILES,
    ClipVerdict,
    EditToJudge,
    FrameVerdict,
    Profile,
    clip_verdict,
    frame_pairs,
)
from editverse_rt.evaluate.prompts import OWN_PROMPT, Answer, fill_prompt, parse_answer, read_paper_prompt
from editverse_rt.files import write_json
from editverse_rt.media.frames import Frames
from editverse_rt.media.plain import jpeg_from_picture

__all__ = ["DryRun", "JudgeOptions", "ServerJudge"]

_MAX_ANSWER_BYTES = 1 << 20
_LONGEST_WAIT_S = 120.0
# Statuses that say that the request itself is wrong. Another try would get the same answer.
_FATAL_STATUS = frozenset({400, 401, 403, 404, 405, 413, 422})
_ANSWER_TOKENS = 120


@dataclass(frozen=True)
class JudgeOptions:
    """Who is asked, and how.

    base_url: of the API, "https://host/v1". api_key: sent as a bearer token, to that address alone. profile:
    of `PROFILES`. paper_clone: of the paper's repository, for a profile that asks its question. cache: a
    folder for answers, None for none. tries: of one question. timeout_s: of one try. backoff_s: before the
    second try, doubled for each further one; a server's Retry-After counts instead, up to two minutes.
    """

    base_url: str
    model: str
    profile: str = "own"
    api_key: str | None = field(default=None, repr=False)
    paper_clone: Path | None = None
    cache: Path | None = None
    temperature: float = 0.0
    max_tokens: int = 512
    tries: int = 5
    timeout_s: float = 60.0
    backoff_s: float = 2.0


@dataclass(frozen=True)
class DryRun:
    """What judging would cost: questions, those that the cache answers, and an estimate of the tokens.

    The estimate of pictures is that of OpenAI's tiles of 512 pixels, 170 tokens each and 85 more; other
    models count otherwise.
    """

    questions: int
    cached: int
    input_tokens: int
    output_tokens: int

    @property
    def calls(self) -> int:
        """How many questions would be sent to the server."""
        return self.questions - self.cached


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class _Question:
    """One question ready to send: its prompt and pictures, and the key of its answer in the cache."""

    prompt: str
    pictures: tuple[bytes, bytes]
    sizes: tuple[tuple[int, int], tuple[int, int]]
    key: str


class ServerJudge:
    """A `Judge` that asks a server. sleep: how it waits, in seconds.

    Raises RequestError for options that cannot work.
    """

    def __init__(self, options: JudgeOptions, *, sleep: Callable[[float], None] = time.sleep) -> None:
        _check(options)
        self._options = options
        self._profile = PROFILES[options.profile]
        self._prompt = self._read_prompt(self._profile)
        self._sleep = sleep
        self._opener = urllib.request.build_opener(_NoRedirect)

    @property
    def identity(self) -> str:
        """Who judges, in one line: the model and the protocol's profile."""
        return f"{self._options.model} by profile {self._profile.name}"

    @property
    def facts(self) -> dict[str, str]:
        """What a score depends on: model, profile, address, and the sha256 of the question."""
        return {
            "model": self._options.model,
            "profile": self._profile.name,
            "url": self._options.base_url,
            "prompt_sha256": hashlib.sha256(self._prompt.encode()).hexdigest(),
        }

    def judge(self, edit: EditToJudge) -> ClipVerdict:
        """Judge one edit. Raises BackendError where the server refuses the request itself (a wrong key)."""
        verdicts = [self._ask(index, question) for index, question in self._questions(edit)]
        return clip_verdict(verdicts, self._profile)

    def dry_run(self, edits: Iterable[EditToJudge]) -> DryRun:
        """Count what judging these edits would ask, without asking."""
        questions = cached = tokens = 0
        for edit in edits:
            for _, question in self._questions(edit):
                questions += 1
                if self._cached(question) is not None:
                    cached += 1
                else:
                    tokens += len(question.prompt) // 4 + sum(
                        _picture_tokens(*size) for size in question.sizes
                    )
        return DryRun(questions, cached, tokens, (questions - cached) * _ANSWER_TOKENS)

    def _read_prompt(self, profile: Profile) -> str:
        if not profile.paper_prompt:
            return OWN_PROMPT
        if self._options.paper_clone is None:
            raise RequestError(
                f"profile {profile.name} asks the paper's question, and no clone of its repository was given",
                hint="give one, or use the profile own",
                code="request.judge",
            )
        return read_paper_prompt(self._options.paper_clone)

    def _questions(self, edit: EditToJudge) -> Iterable[tuple[int, _Question]]:
        prompt = fill_prompt(self._prompt, edit.instruction)
        for index, *pair in frame_pairs(edit, self._profile):
            pictures = tuple(jpeg_from_picture(self._shown(picture)) for picture in pair)
            sizes = tuple((picture.shape[0], picture.shape[1]) for picture in pair)
            before, after = pictures
            yield index, _Question(prompt, (before, after), (sizes[0], sizes[1]), self._key(prompt, pictures))

    def _shown(self, picture: Frames) -> Frames:
        return np.ascontiguousarray(picture[..., ::-1]) if self._profile.exchanges_channels else picture

    def _key(self, prompt: str, pictures: Iterable[bytes]) -> str:
        """Of everything that an answer depends on; not of the key, nor of tries and waits."""
        options = self._options
        facts = [options.base_url, options.model, prompt, options.temperature, options.max_tokens]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for picture in pictures:
            digest.update(hashlib.sha256(picture).digest())
        return digest.hexdigest()

    def _cache_path(self, question: _Question) -> Path | None:
        return None if self._options.cache is None else self._options.cache / f"{question.key}.json"

    def _cached(self, question: _Question) -> Answer | None:
        path = self._cache_path(question)
        if path is None or not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return parse_answer(found["text"])
        except (OSError, ValueError, KeyError, TypeError):
            # A damaged entry is asked for again and written anew.
            return None

    def _ask(self, index: int, question: _Question) -> FrameVerdict:
        answer = self._cached(question)
        if answer is not None:
            return FrameVerdict(index, answer)
        body = json.dumps(self._request_body(question)).encode()
        reason = ""
        for number in range(1, self._options.tries + 1):
            wait_s = self._options.backoff_s * 2 ** (number - 1)
            try:
                text = self._send(body)
            except _TryAgainError as error:
                reason, wait_s = str(error), wait_s if error.wait_s is None else error.wait_s
            else:
                answer = parse_answer(text)
                if answer is not None:
                    self._keep(question, text)
                    return FrameVerdict(index, answer, tries=number)
                reason = f"an answer without three scores from 0 to 3: {text[:80]!r}"
            if number < self._options.tries:
                self._sleep(min(wait_s, _LONGEST_WAIT_S))
        return FrameVerdict(
            index, None, f"{self._options.tries} tries, the last: {reason}", self._options.tries
        )

    def _keep(self, question: _Question, text: str) -> None:
        path = self._cache_path(question)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"model": self._options.model, "text": text})

    def _request_body(self, question: _Question) -> dict[str, Any]:
        urls = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in question.pictures]
        content: list[dict[str, Any]] = [{"type": "text", "text": question.prompt}]
        content += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        return {
            "model": self._options.model,
            "temperature": self._options.temperature,
            "max_tokens": self._options.max_tokens,
            "messages": [{"role": "user", "content": content}],
        }

    def _send(self, body: bytes) -> str:
        """One try: the answer's text. Raises _TryAgainError where another try may do, else BackendError."""
        request = urllib.request.Request(f"{self._options.base_url.rstrip('/')}/chat/completions", data=body)
        request.add_header("Content-Type", "application/json")
        if self._options.api_key:
            request.add_unredirected_header("Authorization", f"Bearer {self._options.api_key}")
        try:
            with self._opener.open(request, timeout=self._options.timeout_s) as response:
                found = json.loads(self._read_within(response))
            return str(found["choices"][0]["message"]["content"] or "")
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read(400).decode(errors="replace").strip()
            if error.code in _FATAL_STATUS or 300 <= error.code < 400:
                raise BackendError(
                    f"the judge answered with status {error.code}: {self._without_key(detail)[:200]}",
                    hint="check its address, its model and the key",
                    code="backend.judge",
                ) from error
            raise _TryAgainError(
                f"status {error.code}", _retry_after_s(error.headers.get("Retry-After"))
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"no answer ({str(error) or type(error).__name__})") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _TryAgainError("an answer that is not of the protocol") from error

    def _read_within(self, response: Any) -> bytes:
        """The answer's bytes; a server that sends a few now and then is not waited for without end."""
        end_s = time.monotonic() + self._options.timeout_s
        data = b""
        while part := response.read1(1 << 16):
            data += part
            if time.monotonic() > end_s or len(data) > _MAX_ANSWER_BYTES:
                raise TimeoutError("the answer does not end")
        return data

    def _without_key(self, text: str) -> str:
        return text.replace(self._options.api_key, "***") if self._options.api_key else text


class _TryAgainError(Exception):
    """A try that failed, and how long the server asks to wait."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date; None where it says neither."""
    if value is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _picture_tokens(height_px: int, width_px: int) -> int:
    """An estimate: fitted into 2048 pixels, the shorter side to at most 768, then tiles of 512."""
    scale = min(1.0, 2048 / max(height_px, width_px))
    scale *= min(1.0, 768 / (scale * min(height_px, width_px)))
    rows, columns = (max(1, -(-int(scale * side) // 512)) for side in (height_px, width_px))
    return 85 + 170 * rows * columns


def _check(options: JudgeOptions) -> None:
    def refuse(name: str, found: object, expected: str) -> None:
        raise RequestError(str(found), expected=expected, field=name, code="request.judge", is_value=True)

    if not re.match(r"https?://[^/\s]+", options.base_url):
        refuse("base_url", options.base_url, "an address such as http://localhost:8000/v1")
    if options.api_key is not None and not re.fullmatch(r"[!-~]+", options.api_key):
        refuse("api_key", "not a token", "printable characters without spaces")
    if not options.model:
        refuse("model", "empty", "the name of the model that judges")
    if options.profile not in PROFILES:
        refuse("profile", options.profile, f"one of {', '.join(PROFILES)}")
    if options.tries < 1:
        refuse("tries", options.tries, "at least 1")
    if not options.timeout_s > 0:
        refuse("timeout_s", options.timeout_s, "above 0")
