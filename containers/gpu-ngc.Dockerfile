# Made by `grpo-hpc image render --write`; change versions.yaml or image.j2 instead.
# gpu-ngc: NVIDIA GPUs on NVIDIA's PyTorch image, for its compiler, profilers and network plug-ins
FROM nvcr.io/nvidia/pytorch:25.11-py3 AS build
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
# every file and no folder: a change of the project alone keeps the packages
COPY *.* /context/
RUN unset PIP_CONSTRAINT \
 && export PIP_CONFIG_FILE=/context/pip.conf PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
 && export GRPO_HPC_IMAGE=gpu-ngc \
 && export CUDNN_HOME=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cudnn \
 && export LD_LIBRARY_PATH=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cudnn/lib:/usr/local/cuda/compat/lib:/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
 && export VLLM_USE_FLASHINFER_SAMPLER=0 \
 && python3 -m venv /opt/grpo-hpc \
 && /opt/grpo-hpc/bin/python -m pip install -q --no-deps --requirement /context/requirements.txt \
 && export CPATH=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cu13/include:/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cudnn/include:/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/nccl/include LIBRARY_PATH=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cu13/lib \
 && export NVTE_FRAMEWORK=pytorch NVTE_PYTORCH_FORCE_BUILD=TRUE \
 && /opt/grpo-hpc/bin/python -m pip install -q --no-deps --no-build-isolation transformer-engine-torch==2.11.0
COPY project /context/project
RUN /opt/grpo-hpc/bin/python -m pip install -q --no-index --no-deps /context/project/grpo_hpc-*.whl

FROM nvcr.io/nvidia/pytorch:25.11-py3

COPY --from=build /opt/grpo-hpc /opt/grpo-hpc
ENV PATH=/opt/grpo-hpc/bin:$PATH
ENV GRPO_HPC_IMAGE=gpu-ngc
ENV CUDNN_HOME=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cudnn
ENV LD_LIBRARY_PATH=/opt/grpo-hpc/lib/python3.12/site-packages/nvidia/cudnn/lib:/usr/local/cuda/compat/lib:/usr/local/nvidia/lib:/usr/local/nvidia/lib64
ENV VLLM_USE_FLASHINFER_SAMPLER=0
LABEL org.opencontainers.image.title='grpo-hpc gpu-ngc'
CMD ["grpo-hpc", "--help"]
