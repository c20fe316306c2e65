"""Earsight's packages are plain top-level packages, run from the repository or installed with ``pip install -e .``.

No wheel is published: ``datasets`` is also the name of a Hugging Face package. ``constraints.txt`` pins what the tests
ran with.
"""

from setuptools import find_packages, setup

setup(
    name="earsight",
    version="0.1.0",
    description="Distributed self-supervised audio-visual pretraining",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["models*", "engine*", "datasets*", "launch*"]),
    package_data={"": ["py.typed"], "engine.report": ["templates/*"]},
    py_modules=["main_pretrain", "main_finetune", "strict_yaml", "home_paths", "atomic", "terminal"],
    install_requires=[
        "torch>=2.11",
        "torchaudio>=2.11",
        "torchvision>=0.26",
        "timm>=1.0.26",
        "deepspeed>=0.19.8",
        "webdataset>=1.0.2",
        "einops",
        "submitit>=1.5",
        "tensorboard",
        "av",
        "soundfile",
        "miniaudio",
        "safetensors",
        "jsonargparse[signatures]>=4.49",
        "torchmetrics",
        "scikit-learn",
        "numpy",
        "pillow",
        "tqdm",
        "pyyaml",
    ],
    extras_require={
        "backbones": ["transformers>=5"],
        "lora": ["peft>=0.18"],
        "embed": ["pyarrow"],
        "wandb": ["wandb"],
        "report": ["plotly>=6", "jinja2"],
        "export": ["onnx", "onnxruntime", "onnxscript"],
        "dev": [
            *("pytest", "pytest-timeout", "pytest-xdist", "ruff", "pyright"),
            *("transformers>=5", "peft>=0.18", "pyarrow", "onnx", "onnxruntime", "onnxscript"),
            *("plotly>=6", "jinja2", "wandb", "nbclient", "ipykernel"),
            "psutil",  # benchmarks/comparison.py
        ],
    },
)
