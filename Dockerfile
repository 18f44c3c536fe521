# CPU:        docker build -t preqn_jax .
# NVIDIA GPU: docker build -t preqn_jax:cuda --build-arg EXTRAS=experiments,video,cuda .
# A run:      docker run --rm -v "$PWD/runs:/preqn_jax/runs" preqn_jax experiments.train \
#               --env=Pendulum-v1 --num_steps=6000 --logdir=runs/demo        (GPU: and --gpus=all)
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# MuJoCo draws videos without a screen by EGL.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
ENV XDG_CACHE_HOME=/tmp/cache

WORKDIR /preqn_jax
COPY pyproject.toml README.md LICENSE ./
COPY preqn_jax preqn_jax
COPY experiments experiments
ARG EXTRAS=experiments,video
RUN pip install --no-cache-dir --editable ".[${EXTRAS}]"

ENTRYPOINT ["python", "-m"]
CMD ["experiments.train", "--help"]
