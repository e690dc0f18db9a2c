# One GPU worker. PyTorch's default Linux wheel brings its CUDA libraries, so the host needs only the NVIDIA driver and
# container toolkit.
# To fix the base, set PYTHON_IMAGE to a digest: python:3.12-slim@sha256:...
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE}
# A starting worker builds its kernels; Triton compiles a small C file for each.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /app
# pip refuses every file whose hash is not in the lock. Only wheels: a source would run code at its build.
COPY deploy/worker.lock ./
RUN pip install --no-cache-dir --require-hashes --only-binary :all: --requirement worker.lock
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY flux2_client flux2_client
COPY shared shared
COPY worker worker
# Setuptools comes from the lock as well.
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
# A new volume takes the owner of the folder that it is mounted on: weights, built kernels, locks, downloaded
# adapters, the tiny model.
RUN groupadd --gid 1000 flux2 && useradd --uid 1000 --gid 1000 --create-home flux2 \
    && install --directory --owner 1000 --group 1000 /hub /kernels /locks /cache /tiny
# Libraries write to volumes: the rest of the container is read-only.
ENV HF_HOME=/hub TORCHINDUCTOR_CACHE_DIR=/kernels/inductor TRITON_CACHE_DIR=/kernels/triton CUDA_CACHE_PATH=/kernels/cuda
USER 1000:1000
CMD ["flux2", "worker"]
