# jxfer for NVIDIA GPUs. JAX's wheels bring CUDA and cuDNN, so the base needs neither; the host needs
# NVIDIA's driver and container toolkit, and the driver must know CUDA 13 (580 or newer).
#
#   docker build --tag jxfer .
#   docker run --rm --gpus all -v "$PWD/runs:/jxfer/runs" -v "$PWD/data:/jxfer/data:ro" jxfer \
#     train --run runs/mine --data.source folder:data
#
# `runs` must be writable for user 1000, or give another one: --user "$(id -u):$(id -g)".
FROM python:3.11-slim

RUN useradd --uid 1000 --create-home jxfer
WORKDIR /jxfer
# Caches and an unknown --user's home; the mount of the runs replaces /jxfer/runs.
ENV HOME=/home/jxfer
RUN mkdir runs && chown jxfer runs && chmod 777 /home/jxfer

COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY checkpoints /src/checkpoints
COPY jxfer /src/jxfer
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[cuda]'
COPY experiments experiments

USER jxfer
ENTRYPOINT ["jxfer"]
CMD ["--help"]
