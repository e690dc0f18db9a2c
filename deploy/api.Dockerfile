# The HTTP API: no torch, no GPU.
FROM python:3.12-slim
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY api api
COPY flux2_client flux2_client
COPY shared shared
COPY worker worker
RUN pip install --no-cache-dir --constraint constraints.txt '.[api]'
# It writes no file.
RUN groupadd --gid 1000 flux2 && useradd --uid 1000 --gid 1000 --create-home flux2
USER 1000:1000
EXPOSE 8000
CMD ["flux2", "api"]
