# The program `dit-moe` for NVIDIA GPUs. CUDA's libraries come with JAX's packages: the host needs
# the driver alone, and the container toolkit.
#
#   docker build -t dit-moe .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD":/work dit-moe \
#       train --config configs/digits.py --workdir runs/digits
FROM python:3.12-slim

# `gpu` is for CUDA 13; `gpu-cuda12` for older drivers.
ARG EXTRA=gpu

WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY dit_moe dit_moe
COPY eval eval
COPY configs configs
RUN pip install --no-cache-dir ".[$EXTRA]"

WORKDIR /work
ENTRYPOINT ["dit-moe"]
