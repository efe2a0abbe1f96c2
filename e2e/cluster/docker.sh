#!/usr/bin/env bash
# Starts a docker daemon, unless one answers. `docker.sh stop` stops the one that was started here.
. "$(dirname "$0")/env.sh"

pid=$cache/dockerd.pid
if [ "${1:-start}" = stop ]; then
  [ ! -f "$pid" ] || { kill "$(cat "$pid")" && tail --pid="$(cat "$pid")" -f /dev/null; rm -f "$pid"; } 2>/dev/null || true
  exit
fi
exclusively
if docker info >/dev/null 2>&1; then exit; fi

need dockerd docker.io docker docker.io iptables iptables jq jq capsh libcap2-bin
# A privileged container asks for every capability, and runc refuses if the machine lacks one: take that out.
last=$(cat /proc/sys/kernel/cap_last_cap)
missing=$(printf %x $(((1 << last + 1) - 1 & ~0x$(awk '/^CapBnd/ { print $2 }' /proc/self/status))))
sed "s/@MISSING@/$(capsh --decode="$missing" | sed 's/.*=//' | tr a-z A-Z)/" "$here/runc-bounded" > "$cache/runc-bounded"
chmod +x "$cache/runc-bounded"

# In a session of its own: Ctrl-C ends the tests, and these then take the cluster down, for which they need docker.
setsid dockerd --pidfile "$pid" --add-runtime "bounded=$cache/runc-bounded" --default-runtime bounded \
  > "$cache/dockerd.log" 2>&1 < /dev/null 9>&- &
deadline=$((SECONDS + 60))
until docker info >/dev/null 2>&1; do
  kill -0 $! 2>/dev/null && [ $SECONDS -lt $deadline ] || fail "dockerd did not come up; see $cache/dockerd.log"
  sleep 0.1
done
step "dockerd was started"
