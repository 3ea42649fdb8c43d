# gpu-broker as an image: docker build --tag gpu-broker .
# What it installs are wheels with the hashes of requirements-run.lock, and this checkout.
FROM python:3.11.14-slim-bookworm AS build
COPY requirements-run.lock /src/
RUN python -m venv /opt/gpu-broker \
    && /opt/gpu-broker/bin/pip install --no-cache-dir --disable-pip-version-check \
       --require-hashes --only-binary :all: -r /src/requirements-run.lock
COPY . /src
RUN /opt/gpu-broker/bin/pip install --no-cache-dir --disable-pip-version-check \
    --no-index --no-deps --no-build-isolation /src

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="gpu-lease-broker" \
      org.opencontainers.image.description="Leases on GPU memory and whole GPUs, held in Redis" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.url="https://gpu-lease-broker.example" \
      org.opencontainers.image.documentation="https://gpu-lease-broker.example/tree/main/docs"
COPY --from=build /opt/gpu-broker /opt/gpu-broker
RUN useradd --uid 10001 --home-dir /var/lib/gpu-broker --create-home --shell /usr/sbin/nologin gpu-broker
ENV PATH=/opt/gpu-broker/bin:$PATH \
    GPU_BROKER_STATE_DIR=/var/lib/gpu-broker \
    PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /var/lib/gpu-broker
EXPOSE 8014
# /ready: the store answers and leases are granted. It needs no API key.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('GPU_ORCHESTRATOR_PORT', '8014') + '/ready', timeout=4)"]
# No shell in between: gpu-broker is the first process and gets SIGTERM itself.
ENTRYPOINT ["gpu-broker"]
CMD ["serve", "--host", "0.0.0.0"]
