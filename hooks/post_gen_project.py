"""Put the memory table into the new README; print the estimate and the next two commands."""

import os
import subprocess
import sys
from pathlib import Path

SLUG = {{ cookiecutter.project_slug | tojson }}


def vram(*options):
    """What the new project's own vram.py says, run with cookiecutter's interpreter."""
    command = [sys.executable, "-B", "vram.py", *options]
    utf8 = {**os.environ, "PYTHONUTF8": "1"}  # the bars, on Windows too
    run = subprocess.run(command, env=utf8, capture_output=True, text=True, encoding="utf-8")
    return run.stdout if run.returncode == 0 else f"No estimate: {run.stderr.strip()}\n"


readme = Path("README.md")
text = readme.read_text(encoding="utf-8")
readme.write_text(text.replace("<!-- memory table -->\n", vram("--markdown")), encoding="utf-8")

print(vram())
print(f"{SLUG} is ready. Next:\n")
print(f"    cd {SLUG} && pip install -e \".[test]\"")
print("    python train.py --smoke     # the whole path with a tiny twin, on the CPU, in seconds")
