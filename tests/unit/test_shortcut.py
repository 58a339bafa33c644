"""What open pages ask each second is answered as Gradio would answer it, without Gradio; all else goes Gradio's way."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from qlora_ui.runs.events import StepLogged
from qlora_ui.runs.journal import JournalWriter
from qlora_ui.runs.run_dir import RunDir
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.drawings import SHARED_S
from qlora_ui.ui.launch import Address, Served, serve
from tests.journals import write_run

LOGIN = "somebody:long enough"


@dataclass
class Site:
    """A served page, and how often Gradio was at work."""

    served: Served
    run: RunDir
    by_gradio: list[int] = field(default_factory=list)

    def tick(self, session: str, receipt: str = "", *, client: Any = httpx, **changed: Any) -> httpx.Response:
        blocks = self.served.blocks
        number, block_fn = next((n, fn) for n, fn in blocks.fns.items() if any(event == "tick" for _, event in fn.targets))
        data = [None if block.stateful else getattr(block, "value", None) for block in block_fn.inputs]
        data[0] = receipt
        body = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": None, "event_data": None, **changed}
        answer: httpx.Response = client.post(f"{self.served.url}/gradio_api/run/predict", json=body)
        return answer

    def curves(self, session: str, cursor: Any) -> list[dict[str, Any]]:
        charts = next(number for number, block in self.served.blocks.blocks.items() if block.elem_id == "train-charts")
        asked = {"runs": [self.run.id], "cursors": [cursor]}
        body = {"session_hash": session, "component_id": charts, "fn_name": "curves", "data": asked}
        answer = httpx.post(f"{self.served.url}/gradio_api/component_server", json=body)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def learn(self, step: int) -> None:
        """One more point."""
        JournalWriter(self.run.journal_path).write(
            StepLogged(step=step, loss=1 / step, learning_rate=1e-4, grad_norm=0.5, tokens_per_s=9.0)
        )


@pytest.fixture
def site(workspace: Workspace, request: pytest.FixtureRequest) -> Iterator[Site]:
    run = write_run(workspace, num_steps=60, done=30, end="live")
    served = serve(workspace, Address(auth=getattr(request, "param", "")))
    made = Site(served, run)
    work = served.blocks.process_api

    async def counted(*args: Any, **named: Any) -> Any:
        made.by_gradio.append(1)
        return await work(*args, **named)

    served.blocks.process_api = counted
    yield made
    served.close(5)


def test_a_poll_is_answered_as_gradio_answers_it(site: Site) -> None:
    quick = site.tick("one").json()
    assert site.by_gradio == []
    site.served.blocks.polls = {}
    stock = site.tick("two").json()
    assert len(site.by_gradio) == 1
    assert set(quick) == set(stock)
    assert {name for name in quick if quick[name] != stock[name]} <= {"duration", "average_duration", "data"}
    # The first is the receipt, a number that counts on; clocks may have gone on.
    assert _without_clocks(quick["data"][1:]) == _without_clocks(stock["data"][1:])
    assert "Running" in json.dumps(quick["data"])


def test_the_next_poll_carries_only_what_is_new(site: Site) -> None:
    receipt, *everything = site.tick("one").json()["data"]
    site.learn(31)
    time.sleep(SHARED_S)
    new_receipt, *news = site.tick("one", receipt).json()["data"]
    assert new_receipt != receipt
    assert 0 < sum(value != {"__type__": "update"} for value in news) < len(everything)
    assert "31" in json.dumps(news)
    assert site.by_gradio == []


def test_new_points_come_once_each_and_none_is_missing(site: Site) -> None:
    (first,) = site.curves("one", None)
    assert first["reset"] and first["series"]["loss"]["x"] == list(range(1, 31))
    xs, cursor = first["series"]["loss"]["x"], first["cursor"]
    for step in range(31, 36):
        site.learn(step)
        site.tick("one")
        (piece,) = site.curves("one", cursor)
        assert not piece["reset"]
        xs, cursor = xs + piece["series"]["loss"]["x"], piece["cursor"]
    site.served.service.readers.view(site.run)
    xs += site.curves("one", cursor)[0]["series"]["loss"]["x"]
    assert xs == list(range(1, 36))
    # Another page with a cursor of its own is sent the rest that it lacks, in whichever way.
    assert site.curves("two", first["cursor"])[0]["series"]["loss"]["x"] == list(range(31, 36))


def test_what_is_no_poll_goes_to_gradio(site: Site) -> None:
    url = f"{site.served.url}/gradio_api/run/predict"
    assert httpx.post(url, content=b"{").status_code == 422
    assert httpx.post(url, json=[1]).status_code == 422
    assert site.tick("one", fn_index=10**6).status_code >= 400
    assert site.tick("one", data=[]).status_code == 500
    assert httpx.post(url, json={"data": "x" * 100_000, "fn_index": 0, "session_hash": "one"}).status_code == 422
    assert httpx.post(f"{site.served.url}/gradio_api/component_server", json={"data": 1}).status_code == 400


def test_pages_of_strangers_are_refused_on_the_short_way_too(site: Site) -> None:
    with httpx.Client(headers={"origin": "http://elsewhere.example"}) as stranger:
        assert site.tick("one", client=stranger).status_code == 403
    with httpx.Client(headers={"host": "elsewhere.example"}) as stranger:
        assert site.tick("one", client=stranger).status_code == 421


@pytest.mark.parametrize("site", [LOGIN], indirect=True)
def test_who_is_not_signed_in_is_told_nothing(site: Site) -> None:
    assert site.tick("one").status_code == 401
    forged = {f"access-token-{site.served.app.cookie_id}": "guessed"}
    with httpx.Client(cookies=forged) as client:
        assert site.tick("one", client=client).status_code == 401
    name, _, password = LOGIN.partition(":")
    with httpx.Client() as client:
        client.post(f"{site.served.url}/login", data={"username": name, "password": password}).raise_for_status()
        client.cookies = httpx.Cookies({cookie.name: cookie.value or "" for cookie in client.cookies.jar})
        assert "Running" in site.tick("one", client=client).text
    assert site.by_gradio == []


def _without_clocks(values: list[Any]) -> list[Any]:
    """The shapes of the answers: what is skipped, which properties an update has, how a value begins."""
    return [sorted(value) if isinstance(value, dict) else str(value)[:20] for value in values]
