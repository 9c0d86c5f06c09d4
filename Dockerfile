# istn-monai's command line (the last stage, which is the default), and its MONAI Label server: see docs/docker.md.
# BASE may be any image with Python 3.11 and its venv; PyTorch's wheels bring CUDA themselves. A torch that BASE has is
# used if it is of the version in constraints.txt.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS user
# results in folders that are mounted belong to whoever runs the container (--user), whom the image need not know
ENV PATH=/opt/istn/bin:$PATH HOME=/tmp USER=istn MPLCONFIGDIR=/tmp/matplotlib PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv --system-site-packages /opt/istn \
    && useradd --uid 10001 --no-create-home --home-dir /tmp istn \
    && mkdir /work && chown 10001 /work
WORKDIR /source
COPY constraints.txt pyproject.toml setup.cfg README.md LICENSE ./
COPY istn_monai istn_monai
COPY bundle bundle

FROM user AS label
COPY hosts/monai_label /app
# of an index that pip asks besides, such as PyTorch's of wheels without CUDA
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-deps -r /app/requirements.txt \
    && pip install --no-deps --no-build-isolation . \
    && mkdir -p /studies /app/model /app/logs /app/bin /app/lib \
    && chmod a+rwx /studies /app/model /app/logs /app/bin /app/lib
USER 10001
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["python", "/app/start.py"]
CMD ["/studies", "--host", "0.0.0.0"]

FROM user AS istn
ARG PIP_EXTRA_INDEX_URL
RUN pip install -c constraints.txt . && rm -rf build
USER 10001
WORKDIR /work
ENTRYPOINT ["istn-monai"]
CMD ["--help"]
