"""In a generated project: for each configuration the calculated and the counted peak, in bytes."""

import json
import sys
from pathlib import Path

sys.path.insert(0, ".")

import torch
import vram

torch.set_num_threads(1)
work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
for given in work["configurations"]:
    settings = vram.read_settings(dict(given) | {"base_model_path": given["base_model"]})
    shape = vram.read_shape(settings)
    if work["vocabulary"]:
        shape |= {"vocab_size": work["vocabulary"], "pad_token_id": None}
    vram.complete(settings, shape, given | {"base_model_path": given["base_model"]})
    calculated = vram.estimate(shape, settings)
    counted = vram.traced(shape, settings, given)
    exact = calculated.parameters, calculated.trainable
    assert exact == (counted.parameters, counted.trainable), given
    answer = {"formula": calculated.peak, "trace": counted.peak, "moment": counted.peak_at}
    print(json.dumps(given | answer), flush=True)
