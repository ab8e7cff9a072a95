# The last stage, and so the default, is the inference image in the manner of grand-challenge.org: it reads /input, writes /output
# and needs no network. Other stages are built by --target. Build with ./build.sh [target]; torch comes in its CUDA build unless
# PIP_FIND_LINKS offers another. Of what pip installs, every file is checked against the sha256 that a lock lists.
#
# The base is named by its digest, so that every build starts from the same files; the tag beside it says what that is. Both are from
# the record of Docker's official images (docker-library/repo-info, 19 September 2026).
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b


# What every image that runs starts from. What is copied into it belongs to root: the process can read it, not change it. There is
# no setuid or setgid file: nothing needs one, and the base brings some.
FROM ${BASE_IMAGE} AS runtime
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
RUN useradd --uid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin algorithm \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && mkdir -p /input /output \
    && chown algorithm /output
WORKDIR /opt/app


# A virtual environment with exactly what the lock lists; it works on any base that has Python 3.11. LOCK=int8 adds OpenVINO.
FROM ${BASE_IMAGE} AS inference-environment
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG LOCK=inference
COPY requirements/install.sh requirements/${LOCK}.lock requirements/torch.lock requirements/cuda.lock /tmp/
RUN python3 -m venv /opt/venv \
    && /tmp/install.sh /opt/venv/bin/python /tmp/${LOCK}.lock --no-cache-dir


# What the inference image is made of, as /bill-of-materials.cdx.json; the tools that list it stay in this stage.
FROM inference-environment AS bill-of-materials
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG VERSION=unknown
COPY weights /opt/app/weights
COPY requirements/install.sh requirements/bill_of_materials.lock requirements/bill_of_materials.py /tmp/
RUN python3 -m venv /opt/tools \
    && /tmp/install.sh /opt/tools/bin/python /tmp/bill_of_materials.lock --no-cache-dir \
    && /opt/tools/bin/python /tmp/bill_of_materials.py "${VERSION}" /opt/venv "$(dirname /opt/app/weights/*/bundle.json)" \
        >/bill-of-materials.cdx.json


# Training and simulation: `docker run … emphysema-subtyping:training train.py …` or `… -m model.simulation …`.
FROM ${BASE_IMAGE} AS training-environment
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY requirements/install.sh requirements/training.lock requirements/torch.lock requirements/cuda.lock /tmp/
RUN python3 -m venv /opt/venv \
    && /tmp/install.sh /opt/venv/bin/python /tmp/training.lock --no-cache-dir


FROM runtime AS training
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="emphysema-subtyping-training" \
      org.opencontainers.image.description="Trains emphysema subtyping networks. Research software, not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=training-environment /opt/venv /opt/venv
COPY weights /opt/app/weights
COPY model /opt/app/model
COPY train.py process.py /opt/app/
RUN /opt/venv/bin/python -m compileall -q /opt/app
USER 1000
ENTRYPOINT ["/opt/venv/bin/python"]
CMD ["train.py", "--help"]


# Cohorts: `docker run … emphysema-subtyping:cohort --input /data/scans --output /data/results`, and the image of a Ray cluster's nodes.
FROM ${BASE_IMAGE} AS cohort-environment
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY requirements/install.sh requirements/cohort.lock requirements/torch.lock requirements/cuda.lock /tmp/
RUN python3 -m venv /opt/venv \
    && /tmp/install.sh /opt/venv/bin/python /tmp/cohort.lock --no-cache-dir


FROM runtime AS cohort
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="emphysema-subtyping-cohort" \
      org.opencontainers.image.description="Scores emphysema subtypes on many chest CTs, with Ray. Research software, not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Workers of a cluster find the code by PYTHONPATH, and KubeRay finds `ray` by PATH.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_idle_worker_killing_time_threshold_ms=60000 \
    PYTHONPATH=/opt/app \
    PATH=/opt/venv/bin:$PATH
COPY --from=cohort-environment /opt/venv /opt/venv
COPY weights /opt/app/weights
COPY model /opt/app/model
COPY cohort.py process.py /opt/app/
RUN /opt/venv/bin/python -m compileall -q /opt/app
USER 1000
ENTRYPOINT ["/opt/venv/bin/python", "/opt/app/cohort.py"]


# Evaluation: on grand-challenge it scores the jobs in /input/predictions.json; elsewhere see evaluate.py --help. It needs no torch.
FROM ${BASE_IMAGE} AS evaluation-environment
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY requirements/install.sh requirements/evaluation.lock /tmp/
RUN python3 -m venv /opt/venv \
    && /tmp/install.sh /opt/venv/bin/python /tmp/evaluation.lock --no-cache-dir


FROM runtime AS evaluation
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="emphysema-subtyping-evaluation" \
      org.opencontainers.image.description="Agreement of emphysema subtyping with visual scores. Research software, not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Each worker is one process on one core; threads of libraries would count against the platform's limit of processes.
ENV OPENBLAS_NUM_THREADS=1
COPY --from=evaluation-environment /opt/venv /opt/venv
COPY model /opt/app/model
COPY evaluate.py /opt/app/
RUN /opt/venv/bin/python -m compileall -q /opt/app
USER 1000
ENTRYPOINT ["/opt/venv/bin/python", "/opt/app/evaluate.py"]


# The viewer: a page in the browser. In a container it can only be reached from outside, so it asks for a password:
# `docker run --publish 127.0.0.1:8501:8501 --env EMPHYSEMA_VIEWER_PASSWORD … emphysema-subtyping:viewer`.
FROM ${BASE_IMAGE} AS viewer-environment
ARG PIP_FIND_LINKS
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY requirements/install.sh requirements/viewer.lock requirements/torch.lock requirements/cuda.lock /tmp/
RUN python3 -m venv /opt/venv \
    && /tmp/install.sh /opt/venv/bin/python /tmp/viewer.lock --no-cache-dir


FROM runtime AS viewer
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="emphysema-subtyping-viewer" \
      org.opencontainers.image.description="Shows emphysema subtypes on chest CT. Research software, not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    EMPHYSEMA_VIEWER_ADDRESS=0.0.0.0
COPY --from=viewer-environment /opt/venv /opt/venv
COPY weights /opt/app/weights
COPY model /opt/app/model
COPY test/input /opt/app/test/input
COPY viewer.py /opt/app/
RUN /opt/venv/bin/python -m compileall -q /opt/app
USER 1000
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["/opt/venv/bin/python", "-c", \
    "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
ENTRYPOINT ["/opt/venv/bin/python", "/opt/app/viewer.py"]


FROM runtime AS inference
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="emphysema-subtyping" \
      org.opencontainers.image.description="Fleischner scores and activation maps of emphysema subtypes on chest CT. Research software, not a medical device." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      nl.diagnijmegen.rse.algorithm.name="emphysema-subtyping" \
      nl.diagnijmegen.rse.algorithm.hardware.cpu.count=4 \
      nl.diagnijmegen.rse.algorithm.hardware.memory=16G \
      nl.diagnijmegen.rse.algorithm.hardware.gpu.count=1 \
      nl.diagnijmegen.rse.algorithm.hardware.gpu.memory=16G

# So that `docker run --gpus all` suffices.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

COPY --from=inference-environment /opt/venv /opt/venv
COPY weights /opt/app/weights
COPY model /opt/app/model
COPY process.py /opt/app/
RUN /opt/venv/bin/python -m compileall -q /opt/app

USER 1000
ENTRYPOINT ["/opt/venv/bin/python", "/opt/app/process.py"]
