"""Writes a checkpoint of train.py as a Hugging Face model folder (bf16) with its tasks.

    python export.py --work WORK --model MODEL_FOLDER [--checkpoint checkpoint.pt]
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

from model import CONFIG, huggingface_weights
from tasks import TASKS


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--checkpoint", default="checkpoint.pt", help="name inside WORK")
    return parser.parse_args()


def main():
    options = arguments()
    options.model.mkdir(parents=True, exist_ok=True)
    state = torch.load(options.work / options.checkpoint)
    weights = {
        name: weight.to(torch.bfloat16) for name, weight in huggingface_weights(state).items()
    }
    save_file(weights, options.model / "model.safetensors", metadata={"format": "pt"})
    (options.model / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (options.model / "tasks.json").write_text(
        json.dumps(TASKS, indent=2, ensure_ascii=False) + "\n"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(options.work / "model" / name, options.model / name)
    size = (options.model / "model.safetensors").stat().st_size
    print(f"{len(weights)} tensors, {size / 1e6:.1f} MB in {options.model}")


if __name__ == "__main__":
    main()
