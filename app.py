"""QLoRA UI: `python app.py` opens the page; `python app.py --help` lists what works without one."""

import os
import sys

OLDEST = (3, 11)


def run() -> int:
    """Hand over to the command line; without a fitting Python or its packages, say what brings them."""
    if sys.version_info < OLDEST:  # an older one cannot even read the rest
        sys.stderr.write("QLoRA UI needs Python 3.11 or newer, and its packages: run start.py, which sets both up.\n")
        return 1
    try:
        from qlora_ui.cli import main

        return main()
    except ModuleNotFoundError as error:
        if (error.name or "qlora_ui").partition(".")[0] == "qlora_ui":
            raise
        venv = os.path.join(os.path.dirname(os.path.abspath(__file__)), ".venv")
        first = "delete the folder .venv, then " if sys.prefix == venv else ""
        sys.stderr.write(f"A package that QLoRA UI needs is not here ({error.name}): {first}run “python3 start.py”, which installs them.\n")
        return 1


if __name__ == "__main__":
    sys.exit(run())
