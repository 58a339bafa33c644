"""What `app.py ui` refuses before it starts anything."""

from __future__ import annotations

import pytest

from qlora_ui.cli import main, serve


@pytest.mark.parametrize("port", ["99999", "0", "-1", "http"])
def test_a_port_that_is_none_is_refused_in_words(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--no-browser", f"--port={port}"]) == 2
    said = capsys.readouterr().err
    assert f"“{port}” is no port" in said and "1 to 65535" in said


def test_so_does_serve_which_takes_any_free_one_for_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port=99999"]) == 2
    assert "“99999” is no port, give a number from 0 to 65535" in capsys.readouterr().err


def test_serving_waits_in_slices_that_ctrl_c_can_end_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        serve._wait_for_ctrl_c()
    assert len(slept) == 3 and max(slept) <= 1
