"""Headers of current browsers (late 2026) for `"headers": "auto"`, in the order in which the browsers send them."""

from __future__ import annotations

import random

_ENCODINGS = "gzip, deflate, br, zstd"
_CHROMIUM_ACCEPT = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
_PLAIN_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
_LANGUAGES = ("en-US,en;q=0.9", "en-GB,en;q=0.9", "de-DE,de;q=0.9,en;q=0.8", "fr-FR,fr;q=0.9,en;q=0.8")
_FETCH = (
    ("Sec-Fetch-Dest", "document"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Site", "none"),
    ("Sec-Fetch-User", "?1"),
)
_SYSTEMS = (
    ("Windows NT 10.0; Win64; x64", '"Windows"'),
    ("Macintosh; Intel Mac OS X 10_15_7", '"macOS"'),
    ("X11; Linux x86_64", '"Linux"'),
)


def random_browser() -> list[tuple[str, str]]:
    """The headers that a random current browser sends when it opens a page."""
    return random.choice((_chrome, _edge, _firefox, _safari))(random.choice(_LANGUAGES))  # noqa: S311  # no secret


def _chromium(brands: str, agent: str, platform: str, language: str) -> list[tuple[str, str]]:
    return [
        ("sec-ch-ua", brands),
        ("sec-ch-ua-mobile", "?0"),
        ("sec-ch-ua-platform", platform),
        ("Upgrade-Insecure-Requests", "1"),
        ("User-Agent", agent),
        ("Accept", _CHROMIUM_ACCEPT),
        *_FETCH,
        ("Accept-Encoding", _ENCODINGS),
        ("Accept-Language", language),
    ]


def _chrome(language: str) -> list[tuple[str, str]]:
    version = random.choice((153, 154, 155, 156))  # noqa: S311
    system, platform = random.choice(_SYSTEMS)  # noqa: S311
    agent = f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version}.0.0.0 Safari/537.36"
    brands = f'"Chromium";v="{version}", "Google Chrome";v="{version}", "Not)A;Brand";v="24"'
    return _chromium(brands, agent, platform, language)


def _edge(language: str) -> list[tuple[str, str]]:
    version = random.choice((154, 155, 156))  # noqa: S311
    system, platform = _SYSTEMS[0]
    agent = (
        f"Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) "
        f"Chrome/{version}.0.0.0 Safari/537.36 Edg/{version}.0.0.0"
    )
    brands = f'"Chromium";v="{version}", "Microsoft Edge";v="{version}", "Not)A;Brand";v="24"'
    return _chromium(brands, agent, platform, language)


def _firefox(language: str) -> list[tuple[str, str]]:
    version = random.choice((155, 156, 157))  # noqa: S311
    system, _ = random.choice(_SYSTEMS)  # noqa: S311
    return [
        ("User-Agent", f"Mozilla/5.0 ({system}; rv:{version}.0) Gecko/20100101 Firefox/{version}.0"),
        ("Accept", _PLAIN_ACCEPT),
        ("Accept-Language", language),
        ("Accept-Encoding", _ENCODINGS),
        ("Upgrade-Insecure-Requests", "1"),
        *_FETCH,
        ("Priority", "u=0, i"),
    ]


def _safari(language: str) -> list[tuple[str, str]]:
    version = random.choice(("26.3", "26.4", "27.0"))  # noqa: S311
    agent = (
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        f"Version/{version} Safari/605.1.15"
    )
    return [
        ("Accept", _PLAIN_ACCEPT),
        *_FETCH[:3],
        ("User-Agent", agent),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("Accept-Language", language),
        ("Priority", "u=0, i"),
    ]
