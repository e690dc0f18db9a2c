# One GPU worker. PyTorch's default Linux wheel brings its CUDA libraries, so the host needs only the NVIDIA driver and
# container toolkit.
FROM python:3.12-slim
# A starting worker builds its kernels; Triton compiles a small C file for each.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY flux2_client flux2_client
COPY shared shared
COPY worker worker
RUN pip install --no-cache-dir --constraint constraints.txt '.[worker]'
# A new volume takes the owner of the folder that it is mounted on: weights, built kernels, locks, downloaded
# adapters, the tiny model.
RUN groupadd --gid 1000 flux2 && useradd --uid 1000 --gid 1000 --create-home flux2 \
    && install --directory --owner 1000 --group 1000 /hub /kernels /locks /cache /tiny
ENV HF_HOME=/hub TORCHINDUCTOR_CACHE_DIR=/kernels/inductor TRITON_CACHE_DIR=/kernels/triton
USER 1000:1000
CMD ["flux2", "worker"]
