"""The guard on every route of the real app: strange hosts and origins never reach a handler."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.guard import Guard
from qlora_ui.ui.launch import Address, Served, serve

OWN = "http://127.0.0.1:7860"
EVIL_HOSTS = ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", "localhost.evil.example", "169.254.169.254", "", "127.0.0.1:x")
EVIL_ORIGINS = ("http://evil.example", "https://127.0.0.1:7860", "http://127.0.0.1:8000", "http://localhost:7860", "null", "file://")


def judge(method: str, host: str, origin: str | None = None, site: str | None = None) -> int | None:
    headers = {"host": [host]}
    if origin is not None:
        headers["origin"] = [origin]
    if site is not None:
        headers["sec-fetch-site"] = [site]
    refusal = Guard(None, ("127.0.0.1", "localhost", "::1")).refusal(method, "http", headers)
    return refusal[0] if refusal else None


def test_own_pages_pass() -> None:
    assert judge("GET", "127.0.0.1:7860") is None
    assert judge("POST", "127.0.0.1:7860", OWN, "same-origin") is None
    assert judge("POST", "localhost:7860", "http://localhost:7860") is None
    assert judge("GET", "[::1]:7860", "http://[::1]:7860") is None


def test_programs_without_a_browser_pass() -> None:
    assert judge("POST", "127.0.0.1:7860") is None


@pytest.mark.parametrize("host", EVIL_HOSTS)
def test_strange_hosts_are_refused(host: str) -> None:
    assert judge("GET", host) == 421


@pytest.mark.parametrize("origin", EVIL_ORIGINS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_strange_origins_are_refused(method: str, origin: str) -> None:
    assert judge(method, "127.0.0.1:7860", origin) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_forms_of_strangers_without_an_origin_are_refused(site: str) -> None:
    assert judge("POST", "127.0.0.1:7860", None, site) == 403
    # A link on another page may still open ours.
    assert judge("GET", "127.0.0.1:7860", None, site) is None


def test_two_hosts_or_origins_are_refused() -> None:
    guard = Guard(None, ("127.0.0.1",))
    assert guard.refusal("GET", "http", {"host": ["127.0.0.1", "evil.example"]}) is not None
    assert guard.refusal("GET", "http", {"host": ["127.0.0.1:1"], "origin": ["http://127.0.0.1:1", "http://evil.example"]}) is not None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    app = serve(Workspace.at(tmp_path_factory.mktemp("guard") / "workspace"), Address())
    yield app
    app.close(5)


def _routes(served: Served) -> list[tuple[str, str]]:
    """Every (method, path) of the app, parameters filled with a word."""
    found = []
    inner = [route.original_router for route in served.app.routes if hasattr(route, "original_router")]
    for route in (*served.app.routes, *(route for router in inner for route in router.routes)):
        path = re.sub(r"\{[^}]+\}", "x", getattr(route, "path", None) or "")
        found += [(method, path) for method in sorted(getattr(route, "methods", None) or {"GET"}) if path]
    return found


def test_every_route_refuses_strange_hosts_and_origins(served: Served) -> None:
    routes = _routes(served)
    assert len(routes) > 30
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        for method, path in routes:
            rebound = client.request(method, path, headers={"host": "evil.example"})
            assert rebound.status_code == 421, (method, path)
            foreign = client.request(method, path, headers={"origin": "http://evil.example"})
            assert foreign.status_code == 403, (method, path)
            assert "access-control-allow-origin" not in foreign.headers, (method, path)


def test_answers_carry_the_security_headers_and_hide_the_docs(served: Served) -> None:
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert client.get(path).status_code == 404
        assert client.get("/monitoring/summary").status_code in (403, 404)


def test_files_outside_are_not_served(served: Served) -> None:
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        for path in ("/etc/passwd", "app.py", "../app.py", "qlora_ui/__init__.py"):
            assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)
