"""Fine-tune the base model on your dataset, in seven steps.

python train.py --smoke                 the whole path with a tiny twin, on the CPU, in seconds
python train.py                         the real run; started again, it goes on where it stopped
python train.py --learning_rate 1e-4    any key of config.yaml, for this run alone
"""

import sys
from pathlib import Path

from transformers import set_seed

import chat
from sft.adapter import add_adapter
from sft.collator import get_collator
from sft.config import load_config, say
from sft.examples import prepare
from sft.model import load_model, load_tokenizer, stop_at, stop_tokens
from sft.report import plot_loss, show_rows, show_summary, summarize
from sft.rows import load_rows
from sft.trainer import Trainer, check_disk, checkpoint_to_resume
from sft.twin import smoke_arguments


def main(argv: list[str]) -> Path:
    """Train, save, and return the folder of the result."""
    smoke = "--smoke" in argv
    if smoke:
        argv = smoke_arguments([word for word in argv if word != "--smoke"])
    args, training_args = load_config(argv, for_training=True)
    checkpoint = checkpoint_to_resume(training_args, args)
    set_seed(training_args.seed)

    say("1. Load the rows")
    with training_args.main_process_first():  # the others find it in the cache
        rows = load_rows(args)

    say("2. Preprocess: rows to tokens, with labels on what is learnt")
    tokenizer = load_tokenizer(args.base_model_path, args.revision)
    with training_args.main_process_first():
        datasets, reports = prepare(rows, tokenizer, args)
    show_rows(reports)

    say(f"3. Load the base model, {args.base_model_path}")
    model = load_model(args)

    say("4. Choose what is trained")
    model = add_adapter(model, args)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"   {trained:,} parameters are trained")

    say("5. Make the Trainer")
    if "evaluation" not in datasets:
        training_args.eval_strategy = "no"
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=datasets["train"],
        eval_dataset=datasets.get("evaluation"),
        data_collator=get_collator(tokenizer, model),
        processing_class=tokenizer,
    )

    say("6. Train")
    check_disk(model, training_args)
    model.config.use_cache = False  # the cache is for generating
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step < trainer.state.max_steps:
        raise SystemExit(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; "
            "the same command goes on from the last checkpoint."
        )
    metrics = trainer.evaluate() if "evaluation" in datasets else {}
    model.config.use_cache = True

    final = Path(training_args.output_dir) / "final"
    say(f"7. Save to {final}")
    trainer.save_model(final)  # the adapter or the model, and the tokenizer with its chat template
    if trainer.is_world_process_zero():
        stop_at(model, stop_tokens(tokenizer)).save_pretrained(final)
        plot_loss(trainer.state.log_history, final.parent / "loss.png")
        show_summary(summarize(trainer, args, reports, result.metrics, metrics), final.parent)
    trainer.close()

    if smoke and training_args.world_size == 1:
        say("Reload what was saved, and talk to it")
        chat.main(["--prompt", "Hello!", "--max_new_tokens", "16", *argv])
        say("The whole path works. The real run: python train.py")
    return final


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from the last checkpoint, if there is one.")
