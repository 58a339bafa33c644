"""Uploads against a stub of the Hub: private by default, nothing but the export, no token in any message."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qlora_ui.base.errors import ModelError, QloraUiError, RunError
from qlora_ui.cli import main
from qlora_ui.engine.exports.push import push_folder
from qlora_ui.runs.registry import create_run
from qlora_ui.runs.workspace import Workspace
from qlora_ui.settings.run_config import RunConfig

TOKEN = "hf_" + "t" * 34


class Stub:
    """What was asked of it, and the status of its answers."""

    def __init__(self) -> None:
        self.status = 200
        self.is_private = True
        self.created: list[dict[str, Any]] = []
        self.committed: dict[str, bytes] = {}
        self.large: list[str] = []
        self.tokens: set[str | None] = set()


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            stub.tokens.add(self.headers.get("Authorization"))
            if stub.status != 200:
                self._send({}, stub.status)
            elif self.path == "/api/repos/create":
                stub.created.append(json.loads(body))
                self._send({"url": f"http://{self.headers['Host']}/me/{json.loads(body)['name']}"})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith("safetensors") else "regular"} for f in files]
                self._send({"files": [mode | {"shouldIgnore": False, "oid": None} for mode in modes]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                # no action means: the storage has it already
                self._send({"transfer": "basic", "objects": [{"oid": o["oid"], "size": o["size"]} for o in json.loads(body)["objects"]]})
            elif self.path == "/api/validate-yaml":
                self._send({"warnings": [], "errors": []})
            else:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        stub.committed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                    elif entry["key"] == "lfsFile":
                        stub.large.append(entry["value"]["path"])
                self._send(
                    {
                        "success": True,
                        "commitUrl": f"http://{self.headers['Host']}/me/model/commit/{'0' * 40}",
                        "commitOid": "0" * 40,
                        "hookOutput": "",
                    }
                )

        def do_GET(self) -> None:
            self._send({"private": stub.is_private, "id": "me/model", "sha": "0" * 40, "siblings": [], "tags": []})

        def _send(self, value: object, status: int = 200) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    import huggingface_hub.constants

    made = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)  # the library reads it when it is imported
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA card.\n", encoding="utf-8")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "adapter_model.safetensors").write_bytes(bytes(64))
    (folder / ".hidden").write_text("x", encoding="utf-8")
    return folder


def test_an_upload_is_private_and_holds_the_export_only(stub: Stub, export: Path, workspace: Workspace) -> None:
    pushed = push_folder(export, "me/model", workspace)
    assert pushed.is_private and stub.created[0]["visibility"] == "private" and stub.created[0]["name"] == "model"
    assert set(stub.committed) == {"README.md", "adapter_config.json"} and stub.large == ["adapter_model.safetensors"]
    assert stub.tokens == {f"Bearer {TOKEN}"}
    assert push_folder(export, "me/model", workspace, public=True).is_private is False
    assert stub.created[1]["visibility"] == "public"


def test_a_public_model_that_was_there_before_is_not_written_to_by_accident(stub: Stub, export: Path, workspace: Workspace) -> None:
    stub.is_private = False
    with pytest.raises(RunError, match="public"):
        push_folder(export, "me/model", workspace)
    assert not stub.committed


def test_a_refusal_says_what_to_do_and_never_the_token(stub: Stub, export: Path, workspace: Workspace) -> None:
    stub.status = 403
    with pytest.raises(ModelError) as caught:
        push_folder(export, "me/model", workspace)
    assert caught.value.code == "hub-403" and TOKEN not in str(caught.value)


def test_a_card_that_the_hub_refuses_is_told_in_words(
    stub: Stub, export: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **arguments: object) -> None:
        raise ValueError('Invalid metadata in README.md.\n- "license" must be one of [mit, other]')

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", refuse)
    with pytest.raises(RunError, match='"license" must be one of') as caught:
        push_folder(export, "me/model", workspace)
    assert caught.value.code == "push-card"


def test_what_must_stay_here_stays_here(stub: Stub, export: Path, workspace: Workspace) -> None:
    (export / "config.json").write_text(json.dumps({"from": str(workspace.root)}), encoding="utf-8")
    with pytest.raises(RunError, match=r"config\.json"):
        push_folder(export, "me/model", workspace)
    assert not stub.created and not stub.committed


def test_without_a_login_or_a_name_nothing_is_asked(
    stub: Stub, export: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QloraUiError, match="OWNER/NAME"):
        push_folder(export, "model", workspace)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RunError, match="not logged in"):
        push_folder(export, "me/model", workspace)
    assert not stub.tokens


def test_nothing_is_exported_for_an_upload_that_cannot_be(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = create_run(workspace, RunConfig())
    words = ["push", "--run", run.id, "--workspace", str(workspace.root), "--to"]
    assert main([*words, "model"]) == 2 and "is not a name on the Hub" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main([*words, "me/model"]) == 2 and "not logged in" in capsys.readouterr().err
