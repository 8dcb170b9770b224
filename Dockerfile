# The environment of the lock, the book's sources, and JupyterLab:
#   docker build -t soft-potentials .
#   docker run --rm -p 127.0.0.1:8888:8888 soft-potentials
# The results and reference data that are not part of the project are kept outside: add
#   -v softening-cache:/cache -v "$PWD/data/results:/book/data/results"
# For a GPU add --gpus all; PyTorch brings its own CUDA libraries.
FROM python:3.11-slim

RUN apt-get update && apt-get install -y --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader && mkdir /book /cache && chown reader /book /cache
USER reader
WORKDIR /book
ENV SOFTENING_CACHE=/cache PATH=/book/.venv/bin:$PATH

# The packages first: they change less often than the text.
COPY --chown=reader requirements.lock pyproject.toml Makefile README.md LICENSE ./
COPY --chown=reader src ./src
RUN make .venv/.lab
COPY --chown=reader . .

EXPOSE 8888
CMD ["jupyter", "lab", "--ip", "0.0.0.0", "--port", "8888", "--no-browser", "notebooks"]
