# One image for gateway, scheduler and worker, such as `docker run qtask worker`.
FROM python:3.13-slim AS build
RUN python -m venv /opt/qtask
ENV PATH=/opt/qtask/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
# Dependencies (the extra `server`) change rarely and come first, so that a new version of QTask only adds a layer.
COPY requirements.lock .
RUN pip install --quiet --require-hashes -r requirements.lock
COPY . .
RUN pip install --quiet --no-deps . \
 && pip uninstall --quiet --yes pip \
 && find /opt/qtask \( -name tests -o -name sample_data \) -type d -prune -exec rm -rf {} + \
 && python -m compileall -q /opt/qtask

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home qtask && install -d -o qtask -g qtask /data /pipes
COPY --from=build /opt/qtask /opt/qtask
ENV PATH=/opt/qtask/bin:$PATH PYTHONUNBUFFERED=1 MPLCONFIGDIR=/tmp \
    QTASK_HOST=0.0.0.0 QTASK_DATA_DIR=/data QTASK_PIPE_DIR=/pipes
USER qtask
WORKDIR /data
VOLUME ["/pipes"]
EXPOSE 5123 5124
ENTRYPOINT ["qtask"]
CMD ["gateway"]
# This one is for the gateway; docker-compose.yml has those of the scheduler and the worker.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["qtask", "health", "gateway"]
