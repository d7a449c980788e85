"""Train the demo checkpoint from nothing and write it as a checkpoint folder.

    python tools/train_demo.py --out build/demo [--steps N] [--minutes M] [--seed S] [--threads T] [--resume]

`tools/demo/README.md` says what it learns and how long that takes. Interrupted with Ctrl-C, the run is saved
in the output folder and goes on with `--resume`.
"""

import argparse
from pathlib import Path

import torch

from demo.evaluate import evaluate
from demo.export import export, load_exported
from demo.train import Options, Trainer


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--steps", type=int, default=Options.steps, help="length of the training")
    parser.add_argument("--minutes", type=float, help="end after this much training time if it comes first")
    parser.add_argument(
        "--batch",
        type=int,
        nargs=3,
        default=Options.batch,
        metavar=("TEXT", "IMAGE", "VIDEO"),
        help="questions of each medium in a step",
    )
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice if not given")
    parser.add_argument("--questions", type=int, default=800, help="questions of each medium at the end")
    parser.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run in the same folder"
    )
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    options = Options(
        steps=arguments.steps, minutes=arguments.minutes, batch=tuple(arguments.batch), seed=arguments.seed
    )
    trainer = Trainer(options)
    saved = arguments.out / "training.pt"
    if arguments.resume:
        trainer.resume(saved)
    elif saved.exists():
        raise SystemExit(f"{saved} holds an earlier run: give --resume, or another --out")
    trainer.run(save_to=saved)

    export(trainer.model, trainer.mtp, trainer.tokenizer, arguments.out)
    print(f"wrote {arguments.out}; its bfloat16 weights answer fresh questions:")
    print(evaluate(*load_exported(arguments.out), arguments.questions, seed=-1).table())


if __name__ == "__main__":
    main()
