# Made by `grpo-hpc image render --write`; change versions.yaml or image.j2 instead.
# cpu: everything on CPUs, from Debian packages and tools/env/cpu.lock
FROM docker.io/library/debian:12-slim AS build
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
# every file and no folder: a change of the project alone keeps the packages
COPY *.* /context/
RUN unset PIP_CONSTRAINT \
 && export PIP_CONFIG_FILE=/context/pip.conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
 && export GRPO_HPC_IMAGE=cpu \
 && python3 -m venv /opt/grpo-hpc \
 && /opt/grpo-hpc/bin/python -m pip install -q --no-deps --requirement /context/requirements.txt
COPY project /context/project
RUN /opt/grpo-hpc/bin/python -m pip install -q --no-index --no-deps /context/project/grpo_hpc-*.whl

FROM docker.io/library/debian:12-slim
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-dev g++ libnuma1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/grpo-hpc /opt/grpo-hpc
ENV PATH=/opt/grpo-hpc/bin:$PATH
ENV GRPO_HPC_IMAGE=cpu
LABEL org.opencontainers.image.title='grpo-hpc cpu'
CMD ["grpo-hpc", "--help"]
