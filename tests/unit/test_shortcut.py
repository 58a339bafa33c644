"""What open pages ask each second is answered without Gradio; all else goes Gradio's way."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from qlora_ui.runs.events import StepLogged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.blocks import Blocks
from qlora_ui.ui.drawings import SHARED_S
from qlora_ui.ui.guard import Guard
from qlora_ui.ui.launch import Address, Served, serve
from qlora_ui.ui.shortcut import SERVER_FUNCTION, Shortcut
from tests.journals import write_run

LOGIN = "somebody:long enough"


@dataclass
class Site:
    """A served page, and how often Gradio was at work."""

    served: Served
    run: RunDir
    by_gradio: list[int] = field(default_factory=list)

    def component(self, elem_id: str) -> int:
        return next(number for number, block in self.served.blocks.blocks.items() if block.elem_id == elem_id)

    def beat(self, session: str, receipt: str = "", *, client: Any = httpx, inputs: Any = None, **changed: Any) -> httpx.Response:
        asked = {"receipt": receipt, "inputs": inputs, "fresh": False}
        body = {"data": asked, "component_id": self.component("q-pulse"), "fn_name": "news", "session_hash": session, **changed}
        answer: httpx.Response = client.post(f"{self.served.url}/gradio_api/component_server/", json=body)
        return answer

    def curves(self, session: str, cursor: Any) -> list[dict[str, Any]]:
        asked = {"runs": [self.run.id], "cursors": [cursor]}
        body = {"session_hash": session, "component_id": self.component("train-charts"), "fn_name": "curves", "data": asked}
        answer = httpx.post(f"{self.served.url}/gradio_api/component_server/", json=body)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def learn(self, step: int) -> None:
        """One more point."""
        JournalWriter(self.run.journal_path).write(
            StepLogged(step=step, loss=1 / step, learning_rate=1e-4, grad_norm=0.5, tokens_per_s=9.0)
        )


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Served]]:
    """One for each login that is asked for."""
    found: dict[str, Served] = {}

    def app(auth: str) -> Served:
        if auth not in found:
            found[auth] = serve(Workspace.at(tmp_path_factory.mktemp("workspace")), Address(auth=auth))
        return found[auth]

    yield app
    for served in found.values():
        served.close(5)


@pytest.fixture
def site(apps: Callable[[str], Served], request: pytest.FixtureRequest) -> Iterator[Site]:
    """An app with a run of its own."""
    served = apps(getattr(request, "param", ""))
    made = Site(served, write_run(served.service.workspace, num_steps=60, done=30, end="live"))
    # Nothing is told of what was drawn for the test before.
    made.beat("before", data={"receipt": "", "inputs": None, "fresh": True})
    routes = served.app.router.middleware_stack

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and "component_server" in scope["path"]:
            made.by_gradio.append(1)
        await routes(scope, receive, send)

    served.app.router.middleware_stack = counted
    yield made
    served.app.router.middleware_stack = routes
    shutil.rmtree(made.run.path)


def comes_to_rest(site: Site, session: str, receipt: str) -> bool:
    """Whether a page that has everything is told nothing; on a busy machine a clock or the memory may have gone on in between."""
    for _ in range(5):
        news = site.beat(session, receipt).json()
        if news is None:
            return True
        receipt = news["receipt"]
    return False


def test_a_page_of_an_earlier_version_is_told_to_load_anew(site: Site) -> None:
    assert site.beat("s1", component_id=10**6).json() == {"reload": True}
    assert not site.by_gradio


def test_every_view_is_told_at_first_and_then_nothing_until_something_changes(site: Site) -> None:
    answer = site.beat("one")
    assert answer.headers["x-frame-options"] == "DENY" and answer.headers["x-content-type-options"] == "nosniff"
    first = answer.json()
    assert set(first["views"]) >= {"q-strip", "train-head", "train-tiles", "train-charts", "runs-table", "chat-view", "q-ready-waits"}
    assert "Running" in first["views"]["q-strip"]["value"]
    assert first["views"]["train-tiles"]["visible"] is True and first["views"]["runs-compare"]["visible"] is False
    assert comes_to_rest(site, "one", first["receipt"])
    assert site.by_gradio == []


def test_the_next_beat_carries_only_what_is_new(site: Site) -> None:
    first = site.beat("one").json()
    site.learn(31)
    time.sleep(SHARED_S)
    news = site.beat("one", first["receipt"]).json()
    assert news["receipt"] != first["receipt"]
    assert {"train-head", "train-charts"} <= set(news["views"]) < set(first["views"])
    assert "31" in json.dumps(news["views"])
    assert "visible" not in news["views"]["train-charts"]
    assert site.by_gradio == []


def test_an_answer_that_never_came_is_given_again(site: Site) -> None:
    receipt = site.beat("one").json()["receipt"]
    site.learn(31)
    time.sleep(SHARED_S)
    lost = site.beat("one", receipt).json()
    again = site.beat("one", receipt).json()
    assert set(again["views"]) >= set(lost["views"])
    assert comes_to_rest(site, "one", again["receipt"])
    # A page that outlives the app has a receipt that nobody gave.
    assert set(site.beat("two", "77").json()["views"]) >= {"q-strip", "train-head"}


def test_views_are_drawn_for_the_fields_of_the_page_that_asks(site: Site) -> None:
    name = site.served.service.readers.view(site.run).name
    assert name in site.beat("one").json()["views"]["runs-table"]["value"]
    assert name not in site.beat("two", inputs=["no such run", ""]).json()["views"]["runs-table"]["value"]
    # What no page of ours sends is taken for a page as it was built.
    assert name in site.beat("three", inputs=["one too few"]).json()["views"]["runs-table"]["value"]
    assert site.beat("four", data=None).json()["views"]


def test_after_something_was_done_nobody_is_told_what_was_drawn_before(site: Site) -> None:
    receipt = site.beat("one").json()["receipt"]
    site.learn(31)
    fresh = {"receipt": receipt, "inputs": None, "fresh": True}
    assert "31" in json.dumps(site.beat("one", data=fresh).json()["views"])


def test_new_points_come_once_each_and_none_is_missing(site: Site) -> None:
    (first,) = site.curves("one", None)
    assert first["reset"] and first["series"]["loss"]["x"] == list(range(1, 31))
    xs, cursor = first["series"]["loss"]["x"], first["cursor"]
    for step in range(31, 36):
        site.learn(step)
        site.beat("one")
        (piece,) = site.curves("one", cursor)
        assert not piece["reset"]
        xs, cursor = xs + piece["series"]["loss"]["x"], piece["cursor"]
    site.served.service.readers.view(site.run)
    xs += site.curves("one", cursor)[0]["series"]["loss"]["x"]
    assert xs == list(range(1, 36))
    # Another page with a cursor of its own is sent the rest that it lacks, in whichever way.
    assert site.curves("two", first["cursor"])[0]["series"]["loss"]["x"] == list(range(31, 36))


def test_it_answers_from_the_first_request_a_page_that_outlived_the_app() -> None:
    asked = {"data": None, "component_id": -1, "fn_name": "news", "session_hash": "old"}
    app: Any = Starlette(lifespan=Shortcut.lifespan(Blocks(), Guard(None, ["testserver"])))
    app.auth = app.auth_dependency = None
    with TestClient(app) as page:
        assert page.post(SERVER_FUNCTION, json=asked).json() == {"reload": True}


def test_what_is_unusual_goes_to_gradio(site: Site) -> None:
    url = f"{site.served.url}/gradio_api/component_server/"
    for content in (b"{", b"[1]", b"{}", b"x" * 100_000):
        assert httpx.post(url, content=content, headers={"content-type": "application/json"}).status_code >= 400
    assert site.beat("one", fn_name="curves").status_code >= 400
    assert len(site.by_gradio) == 5


def test_pages_of_strangers_are_refused_on_the_short_way_too(site: Site) -> None:
    with httpx.Client(headers={"origin": "http://elsewhere.example"}) as stranger:
        assert site.beat("one", client=stranger).status_code == 403
    with httpx.Client(headers={"host": "elsewhere.example"}) as stranger:
        assert site.beat("one", client=stranger).status_code == 421


@pytest.mark.parametrize("site", [LOGIN], indirect=True)
def test_who_is_not_signed_in_is_told_nothing(site: Site) -> None:
    assert site.beat("one").status_code == 401
    forged = {f"access-token-{site.served.app.cookie_id}": "guessed"}
    with httpx.Client(cookies=forged) as client:
        assert site.beat("one", client=client).status_code == 401
    name, _, password = LOGIN.partition(":")
    with httpx.Client() as client:
        client.post(f"{site.served.url}/login", data={"username": name, "password": password}).raise_for_status()
        client.cookies = httpx.Cookies({cookie.name: cookie.value or "" for cookie in client.cookies.jar})
        assert "Running" in site.beat("one", client=client).text
    # Gradio itself refuses, and is not asked by who is signed in.
    assert len(site.by_gradio) == 2


def test_our_early_scripts_stand_before_all_others(site: Site) -> None:
    answer = httpx.get(site.served.url, headers={"accept-encoding": "identity"})
    page = answer.text
    assert page.index("requestAnimationFrame") < page.index("<script", page.index("<script") + 1) < page.index('type="module"')
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert page.rstrip().endswith("</html>")
    assert httpx.head(site.served.url).status_code == 200
