"""Fine-tune the base model on your dataset, in seven steps.

python train.py                         the real run; started again, it goes on where it stopped
python train.py --learning_rate 1e-4    any key of config.yaml, for this run alone

  --smoke    the whole path with a tiny random twin of the model, offline, on the CPU
"""

from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, set_seed

import chat
import vram
from sft.adapter import add_adapter
from sft.answers import HeldOutAnswers, show_answers
from sft.card import write_card
from sft.chat_template import embed_new_tokens
from sft.checkpoints import check_disk, checkpoint_to_resume, describe_run, seal, share_files
from sft.collator import get_collator
from sft.config import load_config, parse, run, say, typed_values
from sft.examples import make_examples
from sft.machine import choose, find_card
from sft.model import load_model, load_tokenizer
from sft.plot import plot_loss
from sft.preflight import check_model, check_settings, check_tokens
from sft.report import show_rows, show_summary, show_trained, write_run
from sft.rows import load_rows
from sft.stop_tokens import stop_at, stop_tokens
from sft.trainer import Trainer
from sft.twin import smoke_overrides


def main(argv: list[str]) -> Path:
    """Train; where memory does not suffice, say what would help."""
    try:
        return train(argv)
    except RuntimeError as error:  # the second is accelerate's, of auto_find_batch_size
        if not isinstance(error, torch.OutOfMemoryError) and "No executable" not in str(error):
            raise
        _, overrides = parse(argv, __doc__, smoke=False)
        _, training_args = load_config(overrides, choose)
        raise SystemExit(vram.advise(training_args, overrides, find_card().gib)) from None


def train(argv: list[str]) -> Path:
    """Train, save, and return the folder of the result."""
    options, overrides = parse(argv, __doc__, smoke=False)
    if options.smoke:
        overrides = smoke_overrides(overrides)
    args, training_args = load_config(overrides, choose)
    check_settings(training_args)
    embeddings = check_model(args)
    set_seed(training_args.seed)

    with training_args.main_process_first():  # the others find it in the cache
        say("1. Load the rows")
        rows = load_rows(args)

        say("2. Preprocess: rows to tokens, with labels on what is trained on")
        tokenizer = load_tokenizer(args.base_model_path, args.revision, args.chat_template)
        examples, reports = make_examples(rows, tokenizer, args)
    show_rows(reports)
    if "evaluation" not in examples:
        training_args.eval_strategy = "no"
        typed_values([*overrides, "--eval_strategy=no"])  # exits where a setting needs one
    check_tokens(examples, tokenizer, embeddings)
    this_run = describe_run(training_args, args, examples)
    checkpoint = checkpoint_to_resume(training_args, args, this_run)
    write_run(training_args, args, this_run, tokenizer)

    say(f"3. Load the base model, {args.base_model_path}")
    model = load_model(args)

    say("4. Choose what is trained")
    embed_new_tokens(model, tokenizer, args)
    model = add_adapter(model, args)
    stop_at(model, stop_tokens(tokenizer))
    show_trained(model)

    say("5. Make the Trainer")
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=examples["train"],
        eval_dataset=examples.get("evaluation"),
        data_collator=get_collator(tokenizer, model),
        processing_class=tokenizer,
    )
    trainer.run = this_run
    held_out = HeldOutAnswers(trainer, examples.get("evaluation"), args)
    trainer.add_callback(held_out)
    if args.early_stopping_patience:
        trainer.add_callback(EarlyStoppingCallback(args.early_stopping_patience))

    say("6. Train")
    check_disk(model, training_args)
    text_config = model.config.get_text_config()
    text_config.use_cache = False  # the cache is for generating
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.stopping.say_why(trainer.state)
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    is_new = training_args.load_best_model_at_end or trainer.state.global_step not in evaluated
    if "evaluation" in examples and is_new:
        trainer.evaluate()
    text_config.use_cache = True
    answers = held_out.ask_both()

    final = Path(training_args.output_dir) / "final"
    unfinished = final.with_suffix(".unfinished")
    say(f"7. Save to {final}")
    trainer.save_model(unfinished)  # the adapter or the model, and the tokenizer with its template
    if trainer.is_world_process_zero():
        model.generation_config.save_pretrained(unfinished)
        share_files(unfinished)
        trainer.save_state()
        plot_loss({"this run": trainer.state.log_history}, final.parent / "loss.png")
        show_answers(held_out.questions, answers, final.parent)
        show_summary(trainer, reports["train"], overrides)
        write_card(unfinished, final.parent, tokenizer)
        seal(unfinished, this_run)
        unfinished.rename(final)  # what is there is whole
    trainer.close()

    if options.smoke and training_args.world_size == 1:
        say("Reload what was saved, and talk to it")
        chat.main(["--prompt=Hello!", "--max_new_tokens=16", *overrides])
        say("The whole path works. The real run: python train.py")
    return final


if __name__ == "__main__":
    run(main, "Interrupted; the same command goes on from the last checkpoint, if there is one.")
