"""Who asks: API keys by their hashes, sessions of the page, and which hosts and origins may call."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from editverse_rt.errors import RequestError
from editverse_rt.serve.problems import HttpError

__all__ = ["COOKIE", "Keys", "check_host", "check_origin", "load_keys"]

COOKIE = "editverse_session"
SESSION_S = 12 * 3600.0
MAX_SESSIONS = 1000
OPEN_OWNER = "local"
_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):([0-9a-f]{64})")


class Keys:
    """Names by the sha256 of their keys, and sessions; without keys everybody is "local"."""

    def __init__(self, hashes: Mapping[str, str] | None) -> None:
        self._hashes = None if hashes is None else dict(hashes)
        self._sessions: dict[str, tuple[str, float]] = {}

    @property
    def are_needed(self) -> bool:
        return self._hashes is not None

    def owner_of(self, key: str) -> str | None:
        """The name of a key, None for a wrong one; the time that it takes tells nothing of the keys."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for name, known in (self._hashes or {}).items():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def begin_session(self, owner: str) -> str:
        """A new session's token, for the cookie."""
        now = time.monotonic()
        self._sessions = {token: kept for token, kept in self._sessions.items() if kept[1] > now}
        while len(self._sessions) >= MAX_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        token = secrets.token_urlsafe(32)
        self._sessions[token] = (owner, now + SESSION_S)
        return token

    def end_session(self, token: str) -> None:
        self._sessions.pop(token, None)

    def who(self, authorization: str | None, session: str | None) -> str | None:
        """The owner that a request speaks for, None where it must show a key first."""
        if self._hashes is None:
            return OPEN_OWNER
        if authorization is not None:
            scheme, _, key = authorization.partition(" ")
            return self.owner_of(key.strip()) if scheme.lower() == "bearer" else None
        owner, end = self._sessions.get(session or "", ("", 0.0))
        return owner if end > time.monotonic() else None


def load_keys(path: Path) -> dict[str, str]:
    """The lines name:sha256 of a file that only its owner can read.

    Raises RequestError (`serve.keys`).
    """
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise _keys_error(path, "can be read by others", "chmod 600 it")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _keys_error(path, f"cannot be read ({error})", "give a text file") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] in keys:
            raise _keys_error(
                path,
                f"has a line {number} that is not name:sha256 with a name of its own",
                "write it as in: printf %s KEY | sha256sum",
            )
        keys[match[1]] = match[2]
    if not keys:
        raise _keys_error(path, "has no key", "add a line name:sha256")
    return keys


def check_host(host: str | None, names: tuple[str, ...]) -> None:
    """Refuse a name that is not the server's: a page elsewhere may have bound it to this address.

    Raises HttpError (403).
    """
    hostname = urlsplit(f"//{host or ''}").hostname if _is_netloc(host) else None
    if hostname is not None:
        if hostname == "localhost" or hostname in names:
            return
        try:
            ipaddress.ip_address(hostname)
        except ValueError:
            pass
        else:
            return
    raise HttpError(
        403,
        f"the Host is {(host or 'missing')[:100]!r}",
        expected="an address, localhost or a name that the server knows",
        hint="start it with --allow-host NAME",
        code="serve.host",
    )


def check_origin(origin: str | None, host: str | None, cors_origins: tuple[str, ...]) -> bool:
    """Refuse pages of other origins; whether the origin is another one that is allowed. Raises HttpError (403)."""
    if origin is None:
        return False
    if origin in cors_origins:
        return True
    parts = urlsplit(origin) if re.fullmatch(r"https?://[^/?#@\s]+", origin) else None
    if parts is not None and parts.netloc.lower() == (host or "").lower():
        return False
    raise HttpError(
        403,
        f"the Origin is {origin[:100]!r}",
        expected="the server's own",
        hint="start it with --cors-origin ORIGIN",
        code="serve.origin",
    )


def _is_netloc(host: str | None) -> bool:
    return (
        host is not None
        and re.fullmatch(r"[A-Za-z0-9._-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?", host) is not None
    )


def _keys_error(path: Path, found: str, hint: str) -> RequestError:
    return RequestError(f"the file of keys {path} {found}", hint=hint, code="serve.keys", field="api_keys")
