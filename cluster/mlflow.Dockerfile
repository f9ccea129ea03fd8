# MLflow's server with PostgreSQL, S3 and logins. From the checkout, for Kubernetes (Compose builds it by itself):
#
#     source cluster/values.env
#     docker build -f cluster/mlflow.Dockerfile -t "$MLFLOW_IMAGE" --build-arg PYTHON_IMAGE="$PYTHON_IMAGE" .
ARG PYTHON_IMAGE
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE}
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "mlflow[auth]==3.17.2" boto3==1.44.8 "psycopg[binary]==3.3.9" \
    && useradd --uid 1000 --create-home mlflow
USER 1000:1000
WORKDIR /home/mlflow
CMD ["mlflow", "server", "--help"]
