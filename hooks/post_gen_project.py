"""Sign the count of memory, put its table into the new README, print it and the next commands."""

import contextlib
import io
import os
import sys
from pathlib import Path

SLUG = {{ cookiecutter.project_slug | tojson }}

sys.dont_write_bytecode = True
sys.path.insert(0, os.getcwd())  # the new project's own code, with cookiecutter's libraries
import vram
from sft import memory


def said(*options):
    """What vram.py says, or why it says nothing."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            vram.main([*options])
    except SystemExit as reason:
        return f"{reason}\n"
    return out.getvalue()


memory.adopt()
readme = Path("README.md")
text = readme.read_text(encoding="utf-8")
readme.write_text(text.replace("<!-- memory table -->\n", said("--markdown")), encoding="utf-8")

if hasattr(sys.stdout, "reconfigure"):  # the bars, on Windows too
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
print(said())
print(f"{SLUG} is ready. Next:\n")
print(f"    cd {SLUG} && pip install -e \".[test]\"")
print("    python train.py --smoke     # the whole path with a tiny twin, on the CPU, in seconds")
