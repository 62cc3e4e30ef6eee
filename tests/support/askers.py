"""The ways in which users ask a handed-on model, each in a process of its own.

python tests/support/askers.py WAY FOLDER

reads prompts as JSON from stdin and prints [[answer, whether it stopped], ...]
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

LIMIT = 64  # tokens of an answer


def ask_chat(folder: str, prompts: list[str]) -> list:
    """chat.py, in whose project this runs."""
    import chat

    outputs, reply = [], chat.reply
    chat.prompts = lambda *_: iter(prompts)

    def watched(model, tokenizer, messages, asked, **how):
        generate = type(model).generate.__get__(model)
        model.generate = lambda **kwargs: outputs.append(generate(**kwargs)) or outputs[-1]
        answer = reply(model, tokenizer, messages, asked, **how)
        outputs[-1] = answer, int(outputs[-1][0, -1]) in model.generation_config.eos_token_id
        return answer

    chat.reply = watched
    chat.main([f"--model={folder}", f"--max_new_tokens={LIMIT}", "--use_cpu"])
    return outputs


def ask_transformers(folder: str, prompts: list[str]) -> list:
    """What a stranger writes, in whatever version is found."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        how = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        inputs = tokenizer.apply_chat_template(chat, **how)
        ids = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)[0]
        text = tokenizer.decode(ids[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append([text, int(ids[-1]) in model.generation_config.eos_token_id])
    return found


def ask_serve(folder: str, prompts: list[str]) -> list | str:
    """`transformers serve`, by the client of OpenAI; its error where it answers none."""
    from openai import APIStatusError, OpenAI

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, words = f"http://127.0.0.1:{port}", [f"--port={port}", "--dtype=float32"]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", *words]
    with subprocess.Popen(
        [*command, "--device=cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            until_it_answers(f"{address}/health", server)
            client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            return [asked(client.chat.completions.create, prompt, folder) for prompt in prompts]
        except APIStatusError as error:
            return str(error)
        finally:
            server.terminate()


def until_it_answers(address: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        try:
            return urllib.request.urlopen(address, timeout=5).close()
        except OSError:
            assert server.poll() is None, "transformers serve has ended"
            time.sleep(0.5)


def asked(create, prompt: str, folder: str) -> list:
    messages = [{"role": "user", "content": prompt}]
    found = create(model=folder, messages=messages, max_tokens=LIMIT, temperature=0)
    return [found.choices[0].message.content, found.choices[0].finish_reason == "stop"]


def ask_llama(file: str, prompts: list[str]) -> list:
    """llama.cpp, with the chat template and the stop tokens of the GGUF."""
    from llama_cpp import Llama

    model, found = Llama(file, n_ctx=1024, verbose=False), []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        answer = model.create_chat_completion(messages, max_tokens=LIMIT, temperature=0)
        choice = answer["choices"][0]
        found.append([choice["message"]["content"], choice["finish_reason"] == "stop"])
    return found


def quantize(file: str, kind: str) -> str:
    """The GGUF in fewer bits, by llama.cpp."""
    import llama_cpp

    to = Path(file).with_name(f"{kind}.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    assert llama_cpp.llama_model_quantize(file.encode(), str(to).encode(), params) == 0
    return str(to)


if __name__ == "__main__":
    sys.path.insert(0, ".")
    way, folder = sys.argv[1:3]
    answers = globals()[way](folder, json.load(sys.stdin))
    print("\n" + json.dumps(answers))
