# One GPU worker. PyTorch's default Linux wheel brings its CUDA libraries; the host needs the NVIDIA driver and
# container toolkit only.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY shared shared
COPY worker worker
RUN pip install --no-cache-dir --constraint constraints.txt '.[worker]'
CMD ["flux2", "worker"]
