"""Takes secrets out of what people and files are shown: users, passwords and query values of URIs."""

from __future__ import annotations

import re
from typing import Any

SHOWN = (
    "scheme",
    "endpoint_override",
    "region",
    "allow_bucket_creation",
    "allow_bucket_deletion",
    "tls_verify_certificates",
)
"""Query options of a URI that may be shown; all others may be secrets."""
SHORTEST = 4
"""Letters of a secret that is looked for outside URIs."""

_URI = re.compile(
    r"""(?P<scheme>[A-Za-z][\w+.-]*://)(?P<rest>(?:(?!::[A-Za-z][\w+.-]*://)(?:[^\s'"]|'(?=[^\s'"]*@)))*)"""
)
# A secret key may hold a slash, which ends a host: then what stands behind the first colon is no port. Web servers have
# ports, and paths with an @; stores of objects have neither.
_USER = re.compile(r"^(?:[^/?#]*|[^/?#@:]*:.*)@")
_WEB_USER = re.compile(r"^(?:[^/?#]*|[^/?#@:]*:(?!\d+(?:[/?#]|$)).*)@")
_OPTION = re.compile(r"(?P<name>[^&;=]+)=(?P<value>[^&;]*?)(?P<end>[),.:;]*)(?=&|;|$)")
_PLAIN = re.compile(r"[\w.:/-]*")


def redact(text: str) -> str:
    """`text` with every URI in it, chained ones (`zip://…::https://…`) too, without what may be a secret."""
    return _URI.sub(_redact_uri, text) if "://" in text else text


def redact_error(error: Exception, uri: str) -> str:
    """What a file system says about `uri`, which may quote a secret of it outside a URI."""
    text = redact(str(error))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def redact_all(content: Any) -> Any:
    """`content`, of mappings, lists and plain values, with every URI in it redacted."""
    if isinstance(content, dict):
        return {redact_all(name): redact_all(value) for name, value in content.items()}
    if isinstance(content, list):
        return [redact_all(value) for value in content]
    return redact(content) if isinstance(content, str) else content


def _secrets(uri: str) -> set[str]:
    found = set()
    for match in _URI.finditer(uri):
        user = _user_of(match).match(match["rest"])
        found.add(user[0][:-1].partition(":")[2] if user else "")
        query = match["rest"].partition("?")[2]
        found |= {each["value"] for each in _OPTION.finditer(query) if each["name"] not in SHOWN}
    return {each for each in found if len(each) >= SHORTEST}


def _user_of(match: re.Match[str]) -> re.Pattern[str]:
    return _WEB_USER if match["scheme"].startswith("http") else _USER


def _redact_uri(match: re.Match[str]) -> str:
    place, mark, query = _user_of(match).sub("***@", match["rest"]).partition("?")
    return match["scheme"] + place + mark + _OPTION.sub(_redact_option, query)


def _redact_option(match: re.Match[str]) -> str:
    known = match["name"] in SHOWN and _PLAIN.fullmatch(match["value"])
    return f"{match['name']}={match['value'] if known else '***'}{match['end']}"
