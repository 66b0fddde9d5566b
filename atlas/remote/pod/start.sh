# Entry point of a rented pod: the job's key, a host key that is told in the log, sshd, and a
# switch that ends the pod where no client ever comes or the ceiling passes.
set -u
mkdir -p ~/.ssh /run/sshd && chmod 700 ~/.ssh
printf '%s\n' "${PUBLIC_KEY:-}" > ~/.ssh/authorized_keys && chmod 600 ~/.ssh/authorized_keys
missing=
for tool in sshd:openssh-server rsync:rsync git:git; do
  command -v "${tool%%:*}" >/dev/null || missing="$missing ${tool#*:}"
done
[ -z "$missing" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
echo "atlas-host-key $(cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub)"

end_pod() {
  echo "atlas: $1: this pod ends itself"
  until python3 - <<'PY'
import os, urllib.request
url = os.environ.get("ATLAS_RUNPOD_URL") or "https://api.runpod.io"
request = urllib.request.Request(url.rstrip("/") + "/v2/pods/" + os.environ["RUNPOD_POD_ID"], method="DELETE",
    headers={"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"], "User-Agent": "atlas-start"})
urllib.request.urlopen(request, timeout=30).close()
PY
  do sleep 20; done
}
(
  sleep "${ATLAS_FIRST_CONTACT:-1800}"
  grep -qsa 'pod[.]watchdog' /proc/[0-9]*/cmdline || end_pod "no client came"  # an image may lack pgrep
) &
[ "${ATLAS_SECONDS:-0}" -eq 0 ] || ( sleep "$ATLAS_SECONDS"; end_pod "the ceiling is reached" ) &
exec /usr/sbin/sshd -D -e -o PasswordAuthentication=no -o PermitRootLogin=prohibit-password \
  -o AllowTcpForwarding=no -o HostKey=/etc/ssh/ssh_host_ed25519_key
