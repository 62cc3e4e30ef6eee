"""Make a release of this template: a tag, after a commit where files do not yet say the version.

make release VERSION=0.3.0      nothing is pushed: the last line is the command that does
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONTEXT, CHANGELOG = ROOT / "cookiecutter.json", ROOT / "CHANGELOG.md"


def main(version: str) -> None:
    head = None
    try:
        if problem := not_ready(version):
            raise SystemExit(f"Not released: {problem}.")
        head = git("rev-parse", "HEAD")
        release(version)
    except subprocess.CalledProcessError as error:
        if head:  # all was committed, so this takes back what was written here alone
            git("reset", "--quiet", "--hard", head)
        raise SystemExit(f"Not released: git says: {error.stderr.strip()}") from None
    print(f"v{version} is tagged. Publish it: git push --atomic origin main v{version}")


def not_ready(version: str) -> str | None:
    """What has to be done before the release, if anything."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        return f"'{version}' is not three numbers; say make release VERSION=0.3.0"
    if (branch := git("branch", "--show-current")) != "main":
        return f"the branch is '{branch}'; git switch main first"
    if changed := git("status", "--porcelain"):
        name = changed.splitlines()[0].split(maxsplit=1)[1]
        return f"{name} is not committed; commit or remove it first"
    if git("tag", "--list", f"v{version}"):
        return f"the tag v{version} exists; choose the next version"
    sections = f"{CHANGELOG.read_text(encoding='utf-8')}\n## ".split("\n## ")
    heading, _, news = sections[1].partition("\n")
    if heading != version or not news.strip():
        return f"CHANGELOG.md does not begin with what is new; write it below '## {version}'"
    return None


def release(version: str) -> None:
    text = CONTEXT.read_bytes()
    current = json.loads(text)["_version"]  # which a project's answers.json records
    if current != version:
        key = b'"_version": "'
        CONTEXT.write_bytes(text.replace(key + current.encode(), key + version.encode()))
        git("commit", "--quiet", "--message", f"Release {version}", "--", CONTEXT.name)
    git("tag", "--annotate", f"v{version}", "--message", f"Release {version}")


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main(*sys.argv[1:2] or [""])
