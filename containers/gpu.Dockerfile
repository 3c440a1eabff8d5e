# Made by `grpo-hpc image render --write`; change versions.yaml or image.j2 instead.
# gpu: NVIDIA GPUs, Python packages on a CUDA runtime
FROM docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04 AS build
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv python3-dev g++ \
 && rm -rf /var/lib/apt/lists/*
# every file and no folder: a change of the project alone keeps the packages
COPY *.* /context/
RUN unset PIP_CONSTRAINT \
 && export PIP_CONFIG_FILE=/context/pip.conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
 && export GRPO_HPC_IMAGE=gpu \
 && export CUDNN_HOME=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cudnn \
 && export VLLM_USE_FLASHINFER_SAMPLER=0 \
 && python3 -m venv /opt/grpo-hpc \
 && /opt/grpo-hpc/bin/python -m pip install -q --no-deps --requirement /context/requirements.txt \
 && export CPATH=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cu13/include:/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cudnn/include:/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/nccl/include LIBRARY_PATH=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cu13/lib \
 && export NVTE_FRAMEWORK=pytorch NVTE_PYTORCH_FORCE_BUILD=TRUE \
 && /opt/grpo-hpc/bin/python -m pip install -q --no-deps --no-build-isolation transformer-engine-torch==2.11.0
COPY project /context/project
RUN /opt/grpo-hpc/bin/python -m pip install -q --no-index --no-deps /context/project/grpo_hpc-*.whl

FROM docker.io/nvidia/cuda:13.0.2-runtime-ubuntu24.04
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-dev g++ libnuma1 libibverbs1 librdmacm1 ibverbs-providers \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/grpo-hpc /opt/grpo-hpc
ENV PATH=/opt/grpo-hpc/bin:$PATH
ENV GRPO_HPC_IMAGE=gpu
ENV CUDNN_HOME=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cudnn
ENV VLLM_USE_FLASHINFER_SAMPLER=0
LABEL org.opencontainers.image.title='grpo-hpc gpu'
CMD ["grpo-hpc", "--help"]
