"""QLoRA UI: `python app.py` opens the page; `python app.py --help` lists what works without one."""

import sys

from qlora_ui.cli import main

if __name__ == "__main__":
    sys.exit(main())
