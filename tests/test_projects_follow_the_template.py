"""A project can be generated again from its answers, and updated when the template goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import CONTEXT, TEMPLATE, config_of, in_project


def files_of(project: Path) -> dict[str, bytes]:
    paths = (path for path in project.rglob("*") if path.is_file())
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in paths}


def test_a_replayed_project_is_identical(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"replay_dir: {json.dumps(str(tmp_path))}\n")
    command = [sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--config-file", str(config)]
    answers = ["row='quoted' and \"quoted\" {a} => {b}", "collator=padding_free"]
    answers.append("_language=zh-CN")
    for name, options in {"first": ["--no-input", *answers], "again": ["--replay"]}.items():
        run = [*command[:4], *options, *command[4:], "--output-dir", str(tmp_path / name)]
        subprocess.run(run, check=True, capture_output=True)
    first, again = (next((tmp_path / name).iterdir()) for name in ("first", "again"))
    assert first.name == again.name
    assert files_of(first) == files_of(again)


@pytest.fixture
def template(tmp_path):
    """The template as a repository of its own, in its first version."""
    folder = tmp_path / "template"
    ignored = shutil.ignore_patterns(".git", ".venv", "demo", "bench", "docs", "__pycache__")
    shutil.copytree(TEMPLATE, folder, ignore=ignored)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder, "first version")
    return folder


def git(folder: Path, *words: str) -> str:
    who = [
        "-c",
        "user.name=Test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "commit.gpgsign=false",
    ]
    command = ["git", *who, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def cruft(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cruft", *words]
    return subprocess.run(command, cwd=folder, check=check, capture_output=True, text=True)


def replace(file: Path, before: str, after: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8")


def test_an_update_keeps_what_the_user_wrote(template, tmp_path):
    context = json.dumps({"lora_targets": "mlp", "project_slug": "mine"})
    cruft(tmp_path, "create", str(template), "--no-input", "--extra-context", context)
    project = tmp_path / "mine"
    git(project, "init", "--quiet")
    replace(project / "config.yaml", "num_train_epochs: 3", "num_train_epochs: 7")
    (project / "notes.md").write_text("mine\n")
    commit(project, "my own edits")

    version = f'"_version": "{CONTEXT["_version"]}"'
    replace(template / "cookiecutter.json", version, '"_version": "99.0.0"')
    generated = template / "{{cookiecutter.project_slug}}"
    replace(
        generated / "chat.py", '"""Talk to the result', '"""Talk, in a new version, to the result'
    )
    (generated / "NEW.md").write_text("a new file\n")
    commit(template, "second version")
    cruft(project, "update", "--skip-apply-ask")
    assert "num_train_epochs: 7" in (project / "config.yaml").read_text(encoding="utf-8")
    assert (project / "notes.md").read_text() == "mine\n"
    assert "in a new version" in (project / "chat.py").read_text(encoding="utf-8")
    assert (project / "NEW.md").exists()
    recorded = json.loads((project / "answers.json").read_text(encoding="utf-8"))
    assert recorded["version"] == "99.0.0"
    assert recorded["answers"]["lora_targets"] == "mlp"
    assert "[mlp]" in (project / "config.yaml").read_text(encoding="utf-8")
    assert not list(project.rglob("*.rej")) and not list(project.rglob("*.orig"))


COLLATOR = {"en": "transformers' own `Data", "zh-CN": "使用 transformers 自带的 `Data"}


@pytest.mark.parametrize("language", COLLATOR)
def test_another_answer_reaches_a_project_and_keeps_its_edits(template, tmp_path, language):
    """The second exercise of LESSONS.md, command by command, in a project that knows no cruft."""
    command = ["cookiecutter", str(template), "--no-input", "lora_targets=mlp"]
    command.append(f"_language={language}")
    subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, check=True, capture_output=True)
    project = tmp_path / "my-sft"
    lesson = (project / "LESSONS.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in lesson.splitlines() if line.startswith("   cruft ")]
    link, update = (line.replace("gh:org/sft-template", str(template)) for line in lines)
    git(project, "init", "--quiet")
    replace(project / "config.yaml", "num_train_epochs: 3", "num_train_epochs: 7")
    replace(project / "train.py", 'say("6. Train")', 'say("6. Train, and watch")')
    commit(project, "my own edits")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    env |= dict(re.findall(r"^   export (\w+)=(\S+)", lesson, re.MULTILINE))
    for line in (link, update):
        subprocess.run(line, cwd=project, shell=True, env=env, check=True, capture_output=True)
        commit(project, "as it is now")
    for name in ("sft/collator.py", "README.md"):
        assert COLLATOR[language] in (project / name).read_text(encoding="utf-8")
    config = (project / "config.yaml").read_text(encoding="utf-8")
    assert "num_train_epochs: 7" in config and "[mlp]" in config
    assert 'say("6. Train, and watch")' in (project / "train.py").read_text(encoding="utf-8")
    assert not list(project.rglob("*.rej"))


OWN_EDITS = {
    "config.yaml": ("num_train_epochs: 3", "num_train_epochs: 7"),
    "train.py": ('say("6. Train")', 'say("6. Train, and watch")'),
    "sft/collator.py": ("ROWS = 2", "ROWS = 3"),
}


FIRST = "f175840"  # 0.1.0, made before there were tags
TAGS = subprocess.run(["git", "tag"], cwd=TEMPLATE, capture_output=True, text=True).stdout.split()
NEXT = "v99.0.0"


def release(template: Path, tag: str) -> subprocess.CompletedProcess:
    who = {"NAME": "Test", "EMAIL": "test@example.org"}
    who = {f"GIT_{role}_{key}": who[key] for role in ("AUTHOR", "COMMITTER") for key in who}
    words = ["make", "release", f"VERSION={tag[1:]}", f"PYTHON={sys.executable}"]
    env = {**os.environ, **who}
    return subprocess.run(words, cwd=template, env=env, capture_output=True, text=True)


def write_news(template: Path) -> None:
    replace(template / "CHANGELOG.md", "# Changelog\n", f"# Changelog\n\n## {NEXT[1:]}\n\nAll.\n")


@pytest.fixture
def released(tmp_path):
    """A clone with all earlier tags, in which the files of today are released."""
    template = tmp_path / "template"
    git(tmp_path, "clone", "--quiet", "--no-checkout", str(TEMPLATE), str(template))
    git(template, "checkout", "--quiet", "-B", "main")
    git(template, "rm", "--quiet", "-r", ".")
    files = git(TEMPLATE, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, files.split("\0")):
        if (TEMPLATE / name).is_file():
            (template / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TEMPLATE / name, template / name)
    write_news(template)
    commit(template, "this version")
    done = release(template, NEXT)
    assert done.returncode == 0, done.stderr
    return template


def test_a_release_is_generated_by_its_tag(released, tmp_path):
    generated = released / "{{cookiecutter.project_slug}}"
    replace(generated / "chat.py", '"""Talk to the result', '"""Talk, one day, to the result')
    commit(released, "after the release")
    config = tmp_path / "config.yaml"
    config.write_text(f"cookiecutters_dir: {json.dumps(str(tmp_path / 'clones'))}\n")
    source = [f"git+{released.as_uri()}", "--checkout", NEXT]  # as from gh:org/sft-template
    command = [*source, "--no-input", "--config-file", str(config)]
    subprocess.run([sys.executable, "-m", "cookiecutter", *command], cwd=tmp_path, check=True)
    project = tmp_path / "my-sft"
    assert json.loads((project / "answers.json").read_text("utf-8"))["version"] == NEXT[1:]
    assert "one day" not in (project / "chat.py").read_text("utf-8")


def edited_project(released: Path, earlier: str, edits: dict, **answers: str) -> Path:
    """A project beside the template, that was made at an earlier version and edited."""
    given = ["--no-input", "--extra-context", json.dumps(answers)]
    cruft(released.parent, "create", str(released), "--checkout", earlier, *given)
    project = released.parent / "my-sft"
    git(project, "init", "--quiet")
    commit(project, "as generated")
    for name, (before, after) in edits.items():
        replace(project / name, before, after)
    (project / "notes.md").write_text("mine\n")
    commit(project, "my own edits")
    return project


def updated(released: Path, tmp_path: Path, earlier: str, edits: dict) -> tuple[dict, dict]:
    """The files of a new project, and of one that was made earlier, edited and updated."""
    project = edited_project(released, earlier, edits)
    made = json.loads((project / ".cruft.json").read_text())["context"]["cookiecutter"]
    cruft(project, "update", "--checkout", NEXT, "--skip-apply-ask")

    (tmp_path / "new").mkdir()
    # the defaults of its time stay a project's answers
    answers = {key: made[key] for key in made.keys() & CONTEXT.keys() if key[0] != "_"}
    create = ["create", str(released), "--checkout", NEXT, "--no-input", "--extra-context"]
    cruft(tmp_path / "new", *create, json.dumps(answers))
    new, updated = files_of(tmp_path / "new" / "my-sft"), files_of(project)
    updated = {name: text for name, text in updated.items() if not name.startswith(".git/")}
    assert updated.pop("notes.md") == b"mine\n"
    return new, updated


@pytest.mark.parametrize("earlier", [FIRST, *TAGS])
def test_a_project_of_an_earlier_version_reaches_the_release(released, tmp_path, earlier):
    new, found = updated(released, tmp_path, earlier, OWN_EDITS)
    assert found.keys() == new.keys()  # what moved has moved, and no .rej or .orig is there
    assert {name for name in new if found[name] != new[name]} == OWN_EDITS.keys()
    for name, (before, after) in OWN_EDITS.items():
        assert found[name].decode() == new[name].decode().replace(before, after)
    in_project(tmp_path / "my-sft", trained_after_the_update)


@pytest.mark.parametrize(
    "name, before, after",
    [
        ("config.yaml", "max_set_aside: 0.05", "max_set_aside: 0.2"),  # a key of another name
        ("sft/preprocess.py", "MARK = ", "# mine\nMARK = "),  # a file that is gone
    ],
)
def test_only_what_its_owner_edited_conflicts(released, tmp_path, name, before, after):
    edits = {"train.py": OWN_EDITS["train.py"], name: (before, after)}
    new, found = updated(released, tmp_path, FIRST, edits)
    own = {file + ending for file in edits for ending in ("", ".rej")}
    left = {file for file in found.keys() | new if found.get(file) != new.get(file)}
    moved = {file for file in left - own if b"# mine" in found.get(file, b"")}
    assert left - moved <= own
    assert any(after.encode() in found[file] for file in left)


def forbid_tags(template: Path) -> None:
    hook = template / ".git/hooks/reference-transaction"
    hook.write_text("#!/bin/sh\n! grep -q refs/tags || { echo no tags today >&2; exit 1; }\n")
    hook.chmod(0o755)


NOT_READY = {
    "three numbers": lambda template: "v99",
    "git switch main": lambda template: git(template, "switch", "-c", "other"),
    "notes.md is not committed": lambda template: (template / "notes.md").write_text("mine\n"),
    "the tag v99.0.0 exists": lambda template: git(template, "tag", NEXT),
    "below '## 99.0.0'": lambda template: git(template, "revert", "--no-edit", "HEAD"),
    "git says: no tags today": lambda template: forbid_tags(template),
}


@pytest.mark.parametrize("words", NOT_READY)
def test_what_is_not_ready_is_not_released(template, words):
    write_news(template)
    commit(template, "news")
    tag = NOT_READY[words](template)
    state = [["log"], ["tag"], ["status"], ["diff", "HEAD"]]
    before = [git(template, *command) for command in state]
    done = release(template, tag if tag == "v99" else NEXT)
    said = done.stderr.splitlines()[0]
    assert done.returncode and said.startswith("Not released: ") and words in said
    assert [git(template, *command) for command in state] == before


def test_an_own_prompt_of_the_first_version_survives_as_the_changelog_says(released):
    """Its answers have another name now: without `row` nothing is updated, with it all is kept."""
    old = {"dataset": "org/quiz", "prompt_template": "Q: {q}", "response_column": "a"}
    old["system_prompt"] = "Be kind."
    project = edited_project(released, FIRST, {}, **old)
    before = files_of(project)
    refused = cruft(project, "update", "--skip-apply-ask", check=False)
    assert refused.returncode and files_of(project) == before
    assert "prompt_template and response_column in config.yaml" in refused.stderr
    assert "    cruft update --variables-to-update '{" in refused.stderr

    changelog = (TEMPLATE / "CHANGELOG.md").read_text(encoding="utf-8")
    (option, given) = re.search(r"`cruft update (--\S+) '(\{\"row\".*?\})'`", changelog).groups()
    given = given.replace("Please Summarize: {dialogue} => {summary}", "Q: {q} => {a}")
    cruft(project, "update", "--skip-apply-ask", option, given)
    values = config_of(project)
    assert (values["prompt_template"], values["response_column"]) == ("Q: {q}", "a")
    assert values["system_prompt"] == ""  # which CHANGELOG.md says, too
    for name in (".cruft.json", "answers.json"):  # the next update has it
        assert "Q: {q} => {a}" in (project / name).read_text(encoding="utf-8")
    commit(project, "updated")
    replace(released / "cookiecutter.json", f'"{NEXT[1:]}"', '"99.1.0"')
    commit(released, "the next version")
    cruft(project, "update", "--skip-apply-ask")
    assert config_of(project) == values


def trained_after_the_update() -> None:
    import train

    train.main(["--smoke", "--max_steps=2"])


def test_it_trains_where_processes_are_spawned(bake):
    """As on Windows and macOS: what goes to another process is pickled, and imported there anew."""
    project = bake.project(collator="visual_check")
    in_project(project, spawning)
    assert (project / "outputs/smoke/final/adapter_config.json").exists()


def spawning() -> None:
    import multiprocess
    import torch

    for package in (multiprocess, torch.multiprocessing):
        package.set_start_method("spawn", force=True)
    sys.modules["__main__"].__spec__ = None
    import train

    train.main(["--smoke", "--max_steps=2", "--dataset_num_proc=2", "--dataloader_num_workers=1"])


def test_files_are_read_and_written_as_utf8_and_paths_are_not_spelt(bake):
    """Windows reads text in its own encoding unless told, and has neither / nor forks."""
    for file in bake.project(collator="padding_free").rglob("*.py"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{file.name}:{number}: {line}"
            if any(call in line for call in ("read_text(", "write_text(")):
                assert "encoding=" in line or line.endswith(("read_text(", "write_text(")), where
            for posix in (
                "os.fork",
                "os.getuid",
                '"/tmp',
                "'/tmp",
                "signal.SIGKILL",
                "import fcntl",
            ):
                assert posix not in line, where


@pytest.mark.network
@pytest.mark.parametrize("answers", [{}, {"collator": "padding_free", "quantization": "int8"}])
def test_it_trains_with_the_lowest_versions_that_it_asks_for(bake, tmp_path, answers):
    """torch is this environment's: an older one comes with gigabytes that a CPU has no use for."""
    import tomllib

    import torch

    project = bake.project(**answers)
    described = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = [one.split(",")[0].replace(">=", "==") for one in described["dependencies"]]
    lowest = [one for one in lowest if not one.startswith("torch==")]
    lowest.append(f"torch=={torch.__version__.partition('+')[0]}")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *lowest, "pytest"], check=True)
    subprocess.run([python, "train.py", "--smoke"], cwd=project, check=True)
    subprocess.run([python, "-m", "pytest", "-q"], cwd=project, check=True)
