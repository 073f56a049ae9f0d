#!/bin/sh
# Writes .env for docker compose, with passwords that nobody else has; one that is there is left alone.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
    echo ".env is there already; delete it to make new passwords (the servers keep the old ones in their volumes)." >&2
    exit 0
fi
umask 077
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
{
    echo "POSTGRES_PASSWORD=$(secret)"
    echo "REDIS_PASSWORD=$(secret)"
    echo "S3_SECRET_KEY=$(secret)"
    echo "METRICS_TOKEN=$(secret)"
} >.env
echo "Wrote .env." >&2
