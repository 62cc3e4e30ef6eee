"""Hand on the result: as a folder in 16 bits, as GGUF for llama.cpp and Ollama, or to the Hub.

python export.py --to merged          output_dir/final   ->  output_dir/merged, without adapter
python export.py --to gguf            output_dir/merged  ->  output_dir/gguf, with a Modelfile
python export.py --to hub ORG/NAME    output_dir/final   ->  the Hub, after you say yes

  --to           merged, gguf, or hub and the name of a repository
  --folder       another folder to send, such as outputs/merged
  --public       whether all may see it; without it, you and your organization
  --converter    llama.cpp's convert_hf_to_gguf.py; without it, looked for in LLAMA_CPP and PATH
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers import PreTrainedModel

from sft.adapter import load_trained
from sft.card import write_card
from sft.checkpoints import MANIFEST, read_manifest, seal, share_files
from sft.config import ProjectArguments, load_config, one_line, parse, run, say
from sft.model import load_tokenizer
from sft.modelfile import modelfile
from sft.version_4 import spell_for_version_4

CONVERTER, GGUF = "convert_hf_to_gguf.py", "model.gguf"
KEPT_HERE = (MANIFEST, "training_args.bin")  # they hold paths of this machine


def main(argv: list[str]) -> Path | str:
    """Export, and return the folder, or the address of what was sent."""
    own = {"to": ["merged"], "folder": "", "public": False, "converter": ""}
    options, overrides = parse(argv, __doc__, **own)
    # on the CPU: unquantized, the model may not fit on the card that trained it
    args, training_args = load_config([*overrides, "--use_cpu=true"])
    final = Path(training_args.output_dir) / "final"
    was, given = read_manifest(final).get("run"), " ".join(overrides)
    if not was:
        raise SystemExit(f"{final} does not exist or is not whole; run train.py first.")
    keys = [key for key in vars(args).keys() & was.keys() if f"--{key}=" not in given]
    args = replace(args, **{key: was[key] for key in keys})  # the run's, not config.yaml's of today
    match options.to:
        case ["merged"]:
            return merge(final, args)
        case ["gguf"]:
            return convert(final, args, options.converter)
        case ["hub", name]:
            return send(Path(options.folder or final), name, not options.public)
    raise SystemExit("--to must be merged, gguf, or hub ORG/NAME.")


@contextmanager
def whole(to: Path) -> Iterator[Path]:
    """A folder to write into, which is renamed to `to` when all is written."""
    if to.exists():
        raise SystemExit(f"{to} is there already; delete it.")
    unfinished = to.with_name(f"{to.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        yield unfinished
        share_files(unfinished)
        unfinished.rename(to)  # what is there is whole
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def merge(final: Path, args: ProjectArguments) -> Path:
    """Write the whole model in bfloat16, an adapter folded into its base."""
    to = final.with_name("merged")
    with whole(to) as folder:
        # The adapter makes up for the rounding of the weights that it was trained on: merged into
        # weights that were never rounded, it gives other answers.
        model = load_trained(final, args, dtype=torch.bfloat16)
        if hasattr(model, "merge_and_unload"):
            model = as_published(model.merge_and_unload())
        model.save_pretrained(folder)
        tokenizer = load_tokenizer(str(final))
        tokenizer.save_pretrained(folder)
        readers = spell_for_version_4(folder, args)
        write_card(folder, final.parent, tokenizer, readers)
        seal(folder, read_manifest(final).get("run"))
    say(f"{to} loads by itself: python chat.py --model {to}. It is for {readers}.")
    return to


def as_published(model: PreTrainedModel) -> PreTrainedModel:
    """The merged model with weights as its class has them: quantizing makes Conv1D a Linear."""
    with torch.device("meta"):
        published = type(model)(model.config)
    for name, layer in published.named_modules():
        merged = model.get_submodule(name)
        if type(layer).__name__ == "Conv1D" != type(merged).__name__:
            merged.weight.data = merged.weight.data.T.contiguous()
    return model


def convert(final: Path, args: ProjectArguments, converter: str) -> Path:
    """Write the merged model as GGUF by llama.cpp's own converter, and a Modelfile for Ollama."""
    place = os.pathsep.join([os.environ.get("LLAMA_CPP", ""), os.environ["PATH"]])
    program = converter or shutil.which(CONVERTER, mode=os.R_OK, path=place)
    merged, to = final.with_name("merged"), final.with_name("gguf")
    with whole(to) as folder:
        if not program or not Path(program).is_file():
            how = "git clone https://github.com/ggml-org/llama.cpp; pip install sentencepiece"
            fix = "name that folder in LLAMA_CPP, or the file with --converter"
            raise SystemExit(f"{converter or CONVERTER} is not found: {how}; then {fix}.")
        if not merged.exists():
            merge(final, args)
        if read_manifest(merged).get("run") != read_manifest(final).get("run"):
            raise SystemExit(f"{merged} is of another run than {final}; delete it.")
        words = [sys.executable, program, merged, "--outtype=f16", f"--outfile={folder / GGUF}"]
        ran = subprocess.run(words, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(f"{program} fails: {['without a word', *ran.stderr.splitlines()][-1]}")
        tokenizer = load_tokenizer(str(merged))
        text = modelfile(GGUF, tokenizer, args)
        (folder / "Modelfile").write_text(text, encoding="utf-8")
        write_card(folder, final.parent, tokenizer, "llama.cpp and Ollama")
    server = f"llama-server --jinja --temp 0 -m {to / GGUF}"
    say(f"{to / GGUF}: {server}; ollama create NAME -f {to}/Modelfile")
    return to


def send(folder: Path, name: str, private: bool) -> str:
    """Send a folder to the Hub after a yes; returns its address there."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} does not exist.")
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    base = config.get("base_model_name_or_path")
    if base and (Path(base).is_dir() or not re.fullmatch(r"([\w.-]+/)?[\w.-]+", base)):
        fix = f"python export.py, then --to hub {name} --folder {folder.with_name('merged')}"
        raise SystemExit(f"{folder} is for a base that only this machine has, {base}: {fix}")
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in KEPT_HERE]
    size = sum(file.stat().st_size for file in files) / 1e9
    who = "private" if private else "for all to see"
    say("\n".join(sorted(file.name for file in files)))
    answer = ""
    with suppress(EOFError):
        answer = input(f"Send these {size:.2f} GB to https://huggingface.co/{name}, {who}? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise SystemExit("Nothing is sent.")
    hub = HfApi()
    try:
        name = hub.create_repo(name, private=private, exist_ok=True).repo_id
        if private and not hub.model_info(name).private:
            raise SystemExit(f"{name} is there already, for all to see: send it with --public.")
        names = [file.relative_to(folder).as_posix() for file in files]
        hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=names)
    except (OSError, ValueError, HTTPError) as error:
        raise SystemExit(f"{name}: {one_line(error)} (`hf auth login` first?)") from None
    say(f"https://huggingface.co/{name}")
    return f"https://huggingface.co/{name}"


if __name__ == "__main__":
    run(main)
