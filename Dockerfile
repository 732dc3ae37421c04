# Three targets: `docker build --target server|export|board .`, for linux/amd64 and linux/arm64 (docker buildx).
# Each RUN is a command that `make` runs: tests/test_containers.py holds them to `make -n install`.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS sources
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY edge_runtime edge_runtime
COPY broker_server broker_server
COPY export export
COPY devices devices

FROM sources AS server-install
RUN python3 -m venv /opt/mas-edge && \
    /opt/mas-edge/bin/python -m pip install --no-cache-dir '.[server,datasets]'

FROM sources AS export-install
RUN python3 -m venv /opt/mas-edge && \
    /opt/mas-edge/bin/python -m pip install --no-cache-dir '.[board,datasets,export]'

FROM sources AS board-install
RUN python3 -m venv /opt/mas-edge && \
    /opt/mas-edge/bin/python -m pip install --no-cache-dir '.[board]'

# What all targets share: a user of their own, whose folder is the only one that is written to.
FROM python:${PYTHON}-slim-bookworm AS runtime
ENV PATH=/opt/mas-edge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    MAS_EDGE_BROKER=127.0.0.1:8883
RUN useradd --system --uid 10001 --create-home --home-dir /data mas-edge
WORKDIR /data
USER 10001
VOLUME ["/data"]

FROM runtime AS export
COPY --from=export-install /opt/mas-edge /opt/mas-edge
ENTRYPOINT ["python"]
CMD ["-m", "export", "compile", "--out", "/data/bundle"]

FROM runtime AS board
COPY --from=board-install /opt/mas-edge /opt/mas-edge
ENV MAS_EDGE_ALIVE=/tmp/mas-edge-alive
# Healthy is an agent whose loop has given a sign of life in the last two minutes.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, sys, time; sys.exit(time.time() - os.stat(os.environ['MAS_EDGE_ALIVE']).st_mtime > 120)"]
ENTRYPOINT ["python"]
CMD ["-m", "edge_runtime", "run", "--config", "/data/agent.toml"]

FROM runtime AS server
COPY --from=server-install /opt/mas-edge /opt/mas-edge
EXPOSE 8883
# Healthy is a broker that answers: the embedded one, or the one that MAS_EDGE_BROKER names.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, socket; host, _, port = os.environ['MAS_EDGE_BROKER'].rpartition(':'); socket.create_connection((host, int(port)), 5)"]
ENTRYPOINT ["python"]
CMD ["-m", "broker_server", "--quiet", "--bundle", "/data/bundle", "--state", "/data/state"]
