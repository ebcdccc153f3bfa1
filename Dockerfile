# Two images: web, which has no machine learning in it, and worker, which has.
#   docker build --target web .      docker build --target worker --platform linux/amd64 .
FROM python:3.11-slim-bookworm AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    HOME=/var/lib/nightferry \
    NIGHTFERRY_DATA=/var/lib/nightferry
RUN groupadd --gid 10001 nightferry \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/nightferry --create-home nightferry
WORKDIR /srv/nightferry

FROM base AS web-packages
COPY requirements-web.lock deploy/requirements-gunicorn.lock ./
RUN python -m venv /opt/venv \
    && pip install --require-hashes -r requirements-web.lock -r requirements-gunicorn.lock \
    && python -m compileall -q /opt/venv

FROM base AS worker-packages
COPY requirements.lock ./
RUN python -m venv /opt/venv \
    && pip install --require-hashes -r requirements.lock \
    && python -m compileall -q /opt/venv

FROM base AS web
COPY --from=web-packages /opt/venv /opt/venv
COPY manage.py ./
COPY deploy/healthcheck.py deploy/
COPY server server
ENV STATIC_ROOT=/srv/nightferry/staticfiles
RUN SECRET_KEY=for-this-step-only python manage.py collectstatic --noinput --verbosity 0 \
    && python -m compileall -q server
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s CMD ["python", "deploy/healthcheck.py"]
# The control socket would be one more way in. nginx, which takes in slow clients, is in front.
CMD ["gunicorn", "server.wsgi", "--no-control-socket", "--bind=0.0.0.0:8000", \
     "--worker-class=gthread", "--workers=2", "--threads=4", "--timeout=60", \
     "--worker-tmp-dir=/dev/shm"]

# Core ML's compiler has no wheel for 64-bit ARM Linux, hence one platform.
# hadolint ignore=DL3029
FROM --platform=linux/amd64 base AS worker
COPY --from=worker-packages /opt/venv /opt/venv
COPY manage.py ./
COPY server server
COPY worker worker
RUN python -m compileall -q server worker
USER 10001:10001
CMD ["python", "-m", "celery", "--app=worker.app", "worker", "--queues=default,ml", \
     "--pool=threads", "--concurrency=1", "--loglevel=INFO"]
