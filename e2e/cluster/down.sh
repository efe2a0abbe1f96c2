#!/usr/bin/env bash
# Takes away what up.sh has made, and ends the docker daemon if it was started here. What was built stays in the cache.
. "$(dirname "$0")/env.sh"

if docker info >/dev/null 2>&1; then
  docker ps --all --quiet --filter "label=io.x-k8s.kind.cluster=$name" --filter "network=$name" |
    xargs --no-run-if-empty docker rm --force --volumes >/dev/null
  for host in app1 db1; do docker rm --force --volumes "$name-$host" >/dev/null 2>&1 || true; done
  docker network rm "$name" >/dev/null 2>&1 || true
fi
rm -f "$KUBECONFIG"
"$here/docker.sh" stop
