# The HTTP API: no torch, no GPU.
# To fix the base, set PYTHON_IMAGE to a digest: python:3.12-slim@sha256:...
ARG PYTHON_IMAGE=python:3.12-slim
FROM ${PYTHON_IMAGE}
WORKDIR /app
# pip refuses every file whose hash is not in the lock. Only wheels: a source would run code at its build.
COPY deploy/api.lock ./
RUN pip install --no-cache-dir --require-hashes --only-binary :all: --requirement api.lock
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY flux2_client flux2_client
COPY shared shared
COPY worker worker
# Setuptools comes from the lock as well.
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
# It writes no file.
RUN groupadd --gid 1000 flux2 && useradd --uid 1000 --gid 1000 --create-home flux2
USER 1000:1000
EXPOSE 8000
CMD ["flux2", "api"]
