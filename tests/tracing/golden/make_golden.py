"""Write golden values with causal-tracer 1.1.0, the library whose public API this package continues.

Run it in an environment of its own, where `causal_tracer` is that library:

    python -m venv peer
    peer/bin/pip install torch==2.13.0 transformers accelerate matplotlib tqdm
    peer/bin/pip install --no-deps causal-tracer==1.1.0
    peer/bin/python tests/tracing/golden/make_golden.py FOLDER OUT.json

FOLDER holds a converted embedded model: python -c "from causal_tracer.loading.embedded import embedded_model_folder
as f; print(f('embedded'))". Scores are written with seven digits.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import causal_tracer
from causal_tracer import LLAMA_LAYER_CONFIG, CausalTracer

CASES = [
    (kind, window, seed)
    for seed in (1, 2)
    for kind, window in (("hidden", 1), ("hidden", 3), ("mlp", 5), ("mlp", 10), ("attention", 5), ("attention", 10))
]
SAMPLES = 2
PROMPTS = {
    "gemma3_text": ("The Space Needle is located in the city of", "The Space Needle", 1.0),
    # The subject does not stand first, and the noise level is the automatic one.
    "llama": ("In Paris, the Eiffel Tower is in the country of", "Eiffel Tower", None),
}


def main(folder: str, out: str) -> None:
    """Trace every case with causal-tracer 1.1.0 and write the scores."""
    if causal_tracer.__version__ != "1.1.0":
        raise SystemExit(f"This needs causal-tracer 1.1.0, and {causal_tracer.__version__} is installed.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt, subject, noise = PROMPTS[model.config.model_type]
    tracer = CausalTracer(model, tokenizer, layer_config=LLAMA_LAYER_CONFIG, noise=noise)
    cases = []
    for kind, window, seed in CASES:
        flow = tracer.calculate_hidden_flow(prompt, subject, kind=kind, window=window, patch_seed=seed, samples=SAMPLES)
        cases.append(
            {
                "kind": kind,
                "window": window,
                "seed": seed,
                "low_score": round(flow.low_score, 7),
                "high_score": round(flow.high_score, 7),
                "subject_range": list(flow.subject_range),
                "answer": flow.answer,
                "scores": [[round(score, 7) for score in row] for row in flow.scores.tolist()],
            }
        )
        print(kind, window, seed, flow.low_score, flow.high_score, file=sys.stderr, flush=True)
    golden = {
        "made_by": "causal-tracer 1.1.0",
        "prompt": prompt,
        "subject": subject,
        "noise": noise,
        "automatic_noise": tracer.noise if noise is None else None,
        "samples": SAMPLES,
        "cases": cases,
    }
    Path(out).write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
