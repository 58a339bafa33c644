"""From a workspace to a page in the browser, and back: serve, wait for Ctrl-C or SIGTERM, stop the job, save, end."""

from __future__ import annotations

import contextlib
import errno
import hmac
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import gradio as gr
import psutil
from starlette.middleware import Middleware

from qlora_ui.base.children import end_children
from qlora_ui.base.errors import QloraUiError
from qlora_ui.base.signals import end_signals, is_hangup
from qlora_ui.runs.ending import has_own_process
from qlora_ui.runs.read import RunView
from qlora_ui.runs.workspace import Workspace
from qlora_ui.ui.app import build
from qlora_ui.ui.blocks import Blocks
from qlora_ui.ui.early import Early
from qlora_ui.ui.guard import Guard
from qlora_ui.ui.service import Service
from qlora_ui.ui.shortcut import Shortcut
from qlora_ui.ui.theme import STATIC, build_theme, stylesheet
from qlora_ui.ui.uploads import Uploads

FIRST_PORT = 7860
FIRST_FREE_PORT = 1024
"""Most systems keep the ports below it for the administrator."""
NUM_PORTS = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SHUTDOWN_S = 30
WARM_UP_AFTER_S = 8.0
LOGINS_PER_MINUTE = 5

logger = logging.getLogger("qlora_ui.ui")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the page is to be served."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None takes the first free one from 7860."""
    auth: str = ""
    """`NAME:PASSWORD`; `NAME` alone has a password made."""

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK


class Login:
    """Checks name and password in constant time, a few tries a minute for everybody together."""

    def __init__(self, name: str, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._password, self._clock = name, password, clock
        self._wrong: deque[float] = deque(maxlen=LOGINS_PER_MINUTE)
        self._lock = threading.Lock()

    def __call__(self, name: str, password: str) -> bool:
        """Whether the pair is right; always False after too many wrong ones within a minute."""
        with self._lock:
            now = self._clock()
            if len(self._wrong) == LOGINS_PER_MINUTE and now - self._wrong[0] < 60:
                return False
            is_right = hmac.compare_digest(name.encode(), self._name.encode()) & hmac.compare_digest(
                password.encode(), self._password.encode()
            )
            if not is_right:
                self._wrong.append(now)
            return is_right


@dataclass(slots=True)
class Served:
    """A page that is being served."""

    url: str
    app: Any
    """The FastAPI app."""
    blocks: gr.Blocks
    service: Service
    password: str = ""
    """A password that was made because only a name was given."""

    def close(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Stop and save the running job within `timeout_s` seconds, then stop serving."""
        self.service.shutdown(timeout_s)
        self.blocks.close(verbose=False)


def serve(workspace: Workspace, address: Address) -> Served:
    """Serve the page and return at once.

    Raises QloraUiError where the port is taken, or an address that others can reach is asked for without a login.
    """
    login, password = _login(address)
    find_port(address)
    prepare_environment(workspace)
    service = Service(workspace)
    blocks = build(service)
    # Asked for once: a computer's own name may take seconds to find out.
    names = host_names(address.host)
    app, port = _launch(blocks, address, login, names)
    # A run that waited would import torch beside the page's first seconds.
    service.take_up(WARM_UP_AFTER_S)
    shown = f"[{address.host}]" if ":" in address.host else address.host
    host = "127.0.0.1" if address.host in ("0.0.0.0", "::", "localhost") else shown
    return Served(f"http://{host}:{port}", app, blocks, service, password)


def _launch(blocks: Blocks, address: Address, login: Login | None, names: Iterable[str]) -> tuple[Any, int]:
    """Serve on the first free port and return the app with it; one that is taken between the look and the bind is passed over."""
    first = FIRST_PORT
    while True:
        port = find_port(address, first)
        try:
            app, _, _ = blocks.launch(**launch_arguments(blocks, address, port, login, names))
        except OSError:
            if address.port is not None:
                raise _taken(address.port) from None
            first = port + 1
        else:
            return app, port


def launch_arguments(
    blocks: Blocks, address: Address, port: int, login: Callable[[str, str], bool] | None, names: Iterable[str]
) -> dict[str, Any]:
    """Every argument of launch() that Gradio would else take from a GRADIO_* variable, and the few that differ from its defaults."""
    return {
        "server_name": address.host,
        "server_port": port,
        "auth": login,
        "auth_message": "Sign in with the name and the password that were given when QLoRA UI was started.",
        "prevent_thread_lock": True,
        "quiet": True,
        "inbrowser": False,
        "inline": False,
        "debug": False,
        "share": False,
        "share_server_address": None,
        "share_server_protocol": "https",
        "mcp_server": False,
        "ssr_mode": False,
        "num_workers": 0,
        "pwa": False,
        "run_history": False,
        "enable_monitoring": False,
        "root_path": "",
        "allowed_paths": [],
        "blocked_paths": [],
        "strict_cors": True,
        "show_error": True,
        "footer_links": [],
        "max_file_size": "2gb",
        "max_threads": 40,
        "state_session_capacity": 50,
        "theme": build_theme(),
        "head": head_html(),
        "favicon_path": STATIC / "icon.svg",
        "app_kwargs": {
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
            "middleware": [Middleware(Guard, hosts=names), Middleware(Early), Middleware(Uploads)],
            "lifespan": Shortcut.lifespan(blocks, Guard(None, names)),
        },
    }


def head_html() -> str:
    """Our styles and scripts (static/*.css, static/*.js), inlined: nothing is fetched from anywhere."""
    scripts = "".join(f"<script>{path.read_text(encoding='utf-8')}</script>" for path in sorted(STATIC.glob("*.js")))
    return f'<meta name="color-scheme" content="light dark"><style>{stylesheet()}</style>{scripts}'


def prepare_environment(workspace: Workspace) -> None:
    """Make the process deaf to GRADIO_* and to proxies on the way to itself; uploads stay inside the workspace."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(workspace.uploads)
    for name in ("NO_PROXY", "no_proxy"):
        kept = [host for host in os.environ.get(name, "").split(",") if host.strip()]
        os.environ[name] = ",".join([*kept, *(host for host in LOOPBACK if host not in kept)])
    # A chatty line of a backend that is not installed on purpose; nothing that a user can act on.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def host_names(host: str) -> tuple[str, ...]:
    """Names under which the page may be asked for: loopback, and what an address that others can reach stands for."""
    names = set(LOOPBACK)
    if host not in LOOPBACK:
        names |= {host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
    if host in ("0.0.0.0", "::"):
        names |= {entry.address.partition("%")[0].lower() for entries in psutil.net_if_addrs().values() for entry in entries}
    return tuple(sorted(names))


def find_port(address: Address, first: int = FIRST_PORT) -> int:
    """The port to serve on, from `first` up; raises QloraUiError where the asked one, or all of ours, are taken."""
    wanted: Iterable[int] = [address.port] if address.port is not None else range(first, FIRST_PORT + NUM_PORTS)
    for port in wanted:
        if _is_free(address.host, port):
            return port
    if address.port is not None:
        raise _taken(address.port)
    raise QloraUiError(f"Ports {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1} are all taken.", fix="Give a free one with --port", code="port")


def _nowhere(host: str) -> QloraUiError:
    return QloraUiError(
        f"{host} is no address of this computer.",
        why="A page can only be served on an address that this computer has",
        fix="Leave --host out for this computer alone, or give 0.0.0.0 for all of its addresses",
        where="--host",
        code="host",
    )


def _taken(port: int) -> QloraUiError:
    listens = "Another program, maybe another QLoRA UI, listens there"
    return QloraUiError(
        f"Port {port} is taken.",
        why=listens if port >= FIRST_FREE_PORT else f"{listens}, or only an administrator may use ports below {FIRST_FREE_PORT}",
        fix="Leave --port out to take the next free one",
        where="--port",
        code="port",
    )


def wait_for_the_end(served: Served) -> None:
    """Sleep until Ctrl-C, SIGTERM or the terminal's end, then stop the job, save it and close; a second signal ends at once."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and not is_hangup(number):
            end_children()
            os._exit(130)
        asked.set()

    for number in end_signals():
        signal.signal(number, ask)
    # A wait without limit would not be woken by Ctrl-C on Windows.
    while not asked.wait(0.5):
        pass
    if words := closing_words(served.service.view(""), list(served.service.worked_on().values())):
        # Where the terminal is gone nobody reads it, and the saving matters.
        with contextlib.suppress(OSError, ValueError):
            print(words, file=sys.stderr, flush=True)
    served.close()


def closing_words(view: RunView | None, working: Sequence[str]) -> str:
    """What becomes of a run and of other work while the app closes; empty where there is none."""
    live = view if view is not None and view.status.is_live else None
    within = f"{SHUTDOWN_S} s at most; Ctrl-C again ends at once."
    if live is not None and not has_own_process(live.config):
        return f"Stopping {live.name or live.id} and saving it, {within}"
    goes_on = f"{live.name or live.id} goes on in its own process; the app finds it again when it is started." if live is not None else ""
    return " ".join(filter(None, (goes_on, f"Ending the {working[0]}, {within}" if working else "")))


def warm_up_later(service: Service) -> threading.Thread:
    """Import torch in the background once the page has had time to open, so that the first Start or chat comes sooner; then
    the pages may count tokens."""

    def work() -> None:
        time.sleep(WARM_UP_AFTER_S)
        try:
            importlib.import_module("torch")
        except ImportError:
            logger.warning("torch is not installed; training and chat will say so")
            return
        service.allow_engine()

    thread = threading.Thread(target=work, name="warm-up", daemon=True)
    thread.start()
    return thread


def _login(address: Address) -> tuple[Login | None, str]:
    if not address.auth:
        if not address.is_loopback:
            raise QloraUiError(
                f"{address.host} can be reached from other computers, and no login is set.",
                why="Whoever reaches the page can train, delete and read everything in the workspace",
                fix="Add --auth NAME (a password is made for you) or --auth NAME:PASSWORD",
                where="--host",
                code="auth",
            )
        return None, ""
    name, _, password = address.auth.partition(":")
    if not name or (password and len(password) < 8):
        raise QloraUiError(
            "The login is too short.",
            fix="Give --auth NAME:PASSWORD with a password of 8 characters or more, or --auth NAME",
            where="--auth",
            code="auth",
        )
    made = "" if password else secrets.token_urlsafe(16)
    return Login(name, password or made), made


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise _nowhere(host) from None
            return False
    return True
