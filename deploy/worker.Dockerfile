# One GPU worker. PyTorch's default Linux wheel brings its CUDA libraries; the host needs the NVIDIA driver and
# container toolkit only.
FROM python:3.12-slim
# Kernels are built when a worker starts; Triton compiles a small C file for each.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY shared shared
COPY worker worker
RUN pip install --no-cache-dir --constraint constraints.txt '.[worker]'
CMD ["flux2", "worker"]
