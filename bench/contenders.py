"""Who is compared, with which settings, and how a job is handed to each of them."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

BENCH = Path(__file__).resolve().parent
TEMPLATE = BENCH.parent
WORK = BENCH / ".work"
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]

# What becomes of freed memory. glibc gives that of large tensors back to the system, which fetches
# and clears it anew at the next step; on a GPU PyTorch keeps it, and here glibc can be told to.
GIVEN_BACK, KEPT = "", "freed memory kept"
_KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


@dataclass(frozen=True)
class Contender:
    """One way to train the same rows.

    Args:
        framework: whose environment and worker do it.
        options: its own arguments, where they differ from its own defaults.
        collator: for "ours": the answer to that prompt.
        all_logits: for "ours": whether they are computed for prompts and padding, too.
        packs: whether a row of its batches holds several of the dataset.
    """

    name: str
    framework: str
    label: str
    options: dict = field(default_factory=dict)
    collator: str = "padding_free"
    packs: bool = False
    all_logits: bool = False


_FREE = {"gradient_checkpointing": False}
_LF = {"disable_gradient_checkpointing": True}
_GROUPED = {"train_sampling_strategy": "group_by_length"}

CONTENDERS = [
    Contender("ours", "ours", "this template, padding_free"),
    Contender("padded", "ours", "this template, seq2seq", collator="seq2seq"),
    Contender("plain", "ours", "plain `Trainer`, padded", collator="seq2seq", all_logits=True),
    Contender("trl", "trl", "TRL, defaults"),
    Contender("trl-free", "trl", "TRL, no checkpointing", _FREE),
    Contender("trl-grouped", "trl", "TRL, no checkpointing, grouped by length", _FREE | _GROUPED),
    Contender(
        "trl-padding-free",
        "trl",
        "TRL, no checkpointing, padding_free",
        _FREE | {"padding_free": True, "max_length": None},  # it refuses the two together
    ),
    Contender(
        "trl-packing",
        "trl",
        "TRL, no checkpointing, packing (bfd)",
        _FREE | {"packing": True},
        packs=True,
    ),
    Contender("lf", "llamafactory", "LLaMA-Factory, defaults"),
    Contender("lf-free", "llamafactory", "LLaMA-Factory, no checkpointing", _LF),
    Contender(
        "lf-grouped",
        "llamafactory",
        "LLaMA-Factory, no checkpointing, sdpa, grouped by length",
        _LF | {"flash_attn": "sdpa"} | _GROUPED,
    ),
    Contender(
        "lf-packing",
        "llamafactory",
        "LLaMA-Factory, no checkpointing, packing (rows see one another)",
        _LF | {"packing": True},
        packs=True,
    ),
    Contender(
        "lf-neat",
        "llamafactory",
        "LLaMA-Factory, no checkpointing, neat_packing",
        _LF | {"packing": True, "neat_packing": True},
        packs=True,
    ),
]
BY_NAME = {contender.name: contender for contender in CONTENDERS}


class Unavailable(Exception):
    """A contender can't run here; the message says why, fit to be printed in a table."""


class Workshop:
    """Environments, rendered projects, and the running of jobs.

    Args:
        envs: a folder with an environment for each peer, made where it is missing; or None, where
            the peers are installed beside what runs this.
        threads: of PyTorch, in every job.
        timeout: seconds that a job may take, or None.
    """

    def __init__(self, envs: Path | None, threads: int, timeout: float | None = None):
        self.envs, self.threads, self.timeout = envs, threads, timeout
        self.missing: dict[str, str] = {}  # framework -> why
        self.projects: dict[tuple, str] = {}
        self.count = itertools.count(1)
        shutil.rmtree(WORK / "jobs", ignore_errors=True)
        shutil.rmtree(WORK / "projects", ignore_errors=True)  # the template may have changed

    def python(self, framework: str) -> str:
        """The interpreter of a framework; that of the template is the one that runs this."""
        if framework == "ours" or self.envs is None:
            return sys.executable
        if framework in self.missing:
            raise Unavailable(self.missing[framework])
        python = self.envs / framework / "bin" / "python"
        if not python.exists():
            try:
                self._install(framework, python)
            except subprocess.CalledProcessError as error:
                shutil.rmtree(self.envs / framework)
                lines = [line for line in error.stderr.splitlines() if "ERROR" in line]
                self.missing[framework] = f"not installed: {harmless([*lines, 'no word why'][0])}"
                raise Unavailable(self.missing[framework]) from None
        return str(python)

    def _install(self, framework: str, python: Path) -> None:
        """An environment with exactly the versions of peers/<framework>.txt."""
        pins = BENCH / "peers" / f"{framework}.txt"
        torch = next(line for line in pins.read_text().splitlines() if line.startswith("torch=="))
        print(f"installing {framework} ...", flush=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", str(python.parent.parent)],
            [*pip, torch],  # with what its build for this machine needs
            [*pip, "--no-deps", "-r", str(pins)],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True)

    def project(self, **answers: str) -> str:
        """The folder of a project rendered with these answers."""
        words = [f"{key}={value}" for key, value in answers.items()]
        if tuple(words) not in self.projects:
            slug = f"project-{len(self.projects) + 1}"
            command = [sys.executable, "-m", "cookiecutter", "--no-input"]
            subprocess.run(
                [*command, "-o", WORK / "projects", TEMPLATE, f"project_slug={slug}", *words],
                check=True,
                capture_output=True,
            )
            self.projects[tuple(words)] = str(WORK / "projects" / slug)
        return self.projects[tuple(words)]

    def run(self, framework: str, job: dict) -> dict:
        """Have a job done in a process of its own, with empty caches.

        Raises:
            Unavailable: it was not done; says why.
        """
        python = self.python(framework)
        path = WORK / "jobs" / f"{next(self.count):04}-{framework}-{job['task']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as cache:
            job = job | {"threads": self.threads, "output_dir": f"{cache}/output"}
            path.write_text(json.dumps(job, indent=1), encoding="utf-8")
            environment = os.environ | {
                "HF_DATASETS_CACHE": f"{cache}/datasets",
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": str(self.threads),
                "OMP_WAIT_POLICY": "passive",  # waiting in a loop would count as work
                "PYTHONDONTWRITEBYTECODE": "1",
                **(_KEEP if job["memory"] == KEPT else {}),
            }
            worker = BENCH / "workers" / f"with_{framework.replace('ours', 'project')}.py"
            log = path.with_suffix(".log")
            with log.open("w") as output:
                try:
                    code = subprocess.run(
                        [python, str(worker), str(path)],
                        env=environment,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        cwd=cache,
                        timeout=self.timeout,
                    ).returncode
                except subprocess.TimeoutExpired:
                    raise Unavailable(f"not done after {self.timeout} seconds") from None
        result = path.with_suffix(".result.json")
        if code or not result.exists():
            lines = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word why"]
            raise Unavailable(f"failed: {harmless(lines[0])}")
        return json.loads(result.read_text(encoding="utf-8"))


def harmless(line: str) -> str:
    """A line of an error without the paths and addresses of this machine."""
    return re.sub(r"\S*(://|host=|['\"(=]/)\S*|(?<!\S)/\S+", "…", line)[:160]


def training_job(
    workshop: Workshop,
    contender: Contender,
    rows: dict[str, str],
    source,
    model: dict,
    *,
    method: str,
    rows_per_step: int,
    max_length: int,
    warmup: int,
    steps: int | None = None,
    quantization: str = "none",
    memory: str = GIVEN_BACK,
) -> dict:
    """What a worker has to know to train.

    Args:
        rows: the files of `data.write`.
        model: its "folder" and its "pad_token_id".
        method: "full" or "lora".
        memory: `GIVEN_BACK` or `KEPT`.
    """
    lora = method == "lora"
    return {
        "task": "train",
        "project": contender.framework == "ours"
        and workshop.project(
            base_model="Qwen/Qwen3-0.6B",
            quantization=quantization,
            lora_targets="attention" if lora else "full",
            collator=contender.collator,
            row=f"{source.prompt} => {{{source.response}}}",
        ),
        "model": model["folder"],
        "pad_token_id": model["pad_token_id"],
        "rows": rows,
        "max_length": max_length,
        "dtype": "float32",
        "quantization": quantization,
        "lora": LORA if lora else None,
        "targets": TARGETS,
        "warmup": warmup,
        "steps": steps,
        "memory": memory,
        "options": contender.options,
        "all_logits": contender.all_logits,
        "training": {
            "use_cpu": True,
            "per_device_train_batch_size": rows_per_step,
            "gradient_accumulation_steps": 1,
            "num_train_epochs": 1,
            # the weights hardly move, so every contender's mean loss over the same rows has to be
            # the same number, in whatever order it takes them
            "learning_rate": 1e-7,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "logging_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "seed": 42,
        },
    }
