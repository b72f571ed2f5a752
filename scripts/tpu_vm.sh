#!/usr/bin/env bash
# Cloud TPU VMs through queued resources: create, install, run until done, delete. See docs/tpu.md.
#
# A command that exits with 75 was preempted and has saved: it is run again, on a new slice where
# the old one is gone. So is one whose slice vanished. Another failure ends the script with its code.
# Works in the bash 3.2 of macOS.
set -euo pipefail

readonly MOUNT=/mnt/jxfer    # the bucket, on every host
readonly PREEMPTED=75        # jxfer's exit code: saved, try again
readonly USER_ERROR=2        # jxfer's exit code: trying again would say the same, see run
readonly CONNECTION_LOST=255 # ssh's
readonly PATIENCE=10         # failures in a row that are borne before giving up
readonly POLL=${JXFER_POLL:-30} # seconds between two questions about the slice

usage() {
  cat >&2 <<'USAGE'
usage: scripts/tpu_vm.sh create  --name NAME --zone ZONE --type TYPE --runtime VERSION [--spot]
       scripts/tpu_vm.sh install --name NAME --zone ZONE [--bucket BUCKET]
       scripts/tpu_vm.sh run     OPTIONS OF create AND install -- COMMAND ...
       scripts/tpu_vm.sh delete  --name NAME --zone ZONE

  create   asks for a slice; it is queued until there is room
  install  copies this checkout to every host and installs it there, as run does
  run      waits for the slice, installs, runs COMMAND in the checkout on every host and prints what
           it says; after a preemption it asks for a new slice and runs the same COMMAND again
  delete   deletes the slice and ends its costs

  --type      such as v5litepod-8; --runtime such as v2-alpha-tpuv5-lite
  --spot      cheaper, and may be preempted at any time
  --bucket    a bucket of Cloud Storage that every host sees as /mnt/jxfer
  --project   unless gcloud's own is meant
  --dry-run   print every command, run none
USAGE
}

fail() {
  echo "tpu_vm.sh: error: $1" >&2
  exit 2
}

say() { echo "tpu_vm.sh: $1" >&2; }

# The words as a shell reads them back.
quote() {
  local word single="'" escaped="'\\''" gap=''
  for word; do
    case $word in
      '' | *[!a-zA-Z0-9_./:=@%+,-]*) word="'${word//$single/$escaped}'" ;;
    esac
    printf '%s%s' "$gap" "$word"
    gap=' '
  done
}

call() {
  if $dry_run; then
    quote "$@"
    echo
  else
    "$@"
  fi
}

# gcloud compute tpus ARGUMENTS, in the zone and the project.
tpus() { call gcloud compute tpus "$@" --zone="$zone" ${project:+"--project=$project"}; }

create() {
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" ${spot:+--spot}
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

queue_details() { tpus queued-resources describe "$name"; }

queue_state() { tpus queued-resources describe "$name" '--format=value(state.state)'; }

# And how many hosts it has.
node_state() { tpus tpu-vm describe "$name" '--format=value(state,networkEndpoints.len())'; }

# What a question answers; NONE where its subject does not exist, UNKNOWN without an answer.
ask() {
  if "$1" 2>"$scratch/errors"; then
    return
  elif grep -q NOT_FOUND "$scratch/errors"; then
    echo NONE
  else
    cat "$scratch/errors" >&2
    echo UNKNOWN
  fi
}

remake() {
  delete
  create
}

# wait_until_ready's last words, of a state and how often it was seen.
give_up() {
  say "$name: $1 $2 times; ask why by: $(dry_run=true queue_details)"
  exit 1
}

# Returns when every host is up, and sets `hosts`; asks for a new slice where there is none.
wait_until_ready() {
  # `stuck`: answers in a row that lead nowhere. `failed`: requests, none of them granted since.
  local state stuck=0 failed=0
  if $dry_run; then
    echo "# every $POLL s, until they say ACTIVE and READY:"
    queue_state
    node_state
    echo "# where the first says SUSPENDED or FAILED; where it finds nothing, the second alone:"
    remake
    echo "# then, and again after exit code $PREEMPTED or when the slice is gone:"
    return
  fi
  while :; do
    state=$(ask queue_state)
    if [[ $state == ACTIVE ]]; then
      read -r state hosts <<<"$(ask node_state)"
      if [[ $state == READY ]]; then return; fi
      state="ACTIVE, its node $state"
    fi
    stuck=$((stuck + 1))
    case $state in
      UNKNOWN | *' node UNKNOWN' | *' node NONE')
        if ((stuck >= PATIENCE)); then give_up "$state" $stuck; fi
        ;;
      *' node PREEMPTED' | *' node TERMINATED')
        # Left to the service for a while, which suspends the request of such a node.
        if ((stuck >= PATIENCE)); then
          stuck=0
          remake
        fi
        ;;
      FAILED)
        stuck=0 failed=$((failed + 1))
        if ((failed >= PATIENCE)); then give_up "$state" $failed; fi
        remake
        ;;
      SUSPENDED)
        stuck=0
        remake
        ;;
      NONE)
        stuck=0
        create
        ;;
      *) stuck=0 ;;
    esac
    say "$name is $state; asking again in $POLL s"
    sleep "$POLL"
  done
}

# The checkout with its changes; files that git does not know are left out.
pack() {
  local tree
  if $dry_run; then
    echo "tree=\$(git -C $(quote "$root") stash create)"
    echo "git -C $(quote "$root" archive --format=tar.gz --output="$archive") \"\${tree:-HEAD}\""
    return
  fi
  tree=$(git -C "$root" stash create)
  git -C "$root" archive --format=tar.gz --output="$archive" "${tree:-HEAD}"
}

on_all_hosts() {
  tpus tpu-vm ssh "$name" --worker=all --ssh-flag=-oServerAliveInterval=30 --command="$1"
}

# A host whose connection was lost may still be at work: the lock makes its successor wait.
# The images of TPU VMs bring Python 3.10; uv brings its own.
install_command() {
  cat <<REMOTE
set -e
flock -w 900 -E $PREEMPTED jxfer.lock rm -rf jxfer
REMOTE
  cat <<'REMOTE'
mkdir jxfer && tar -xzf jxfer.tar.gz -C jxfer
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || python3 -m pip install --quiet --user uv
test -x jxfer-env/bin/python || uv venv --quiet --python 3.11 jxfer-env
cd jxfer
uv pip install --quiet --python ../jxfer-env/bin/python --reinstall-package jxfer -c constraints.txt ".[tpu,gcs]"
REMOTE
  if [[ -n $bucket ]]; then
    cat <<REMOTE
if ! command -v gcsfuse >/dev/null; then
  curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -c -s) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -q -o DPkg::Lock::Timeout=300 update
  sudo apt-get -q -y -o DPkg::Lock::Timeout=300 install gcsfuse
fi
if ! mountpoint -q $MOUNT; then
  sudo mkdir -p $MOUNT
  sudo chown "\$(id -u)" $MOUNT
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 $bucket $MOUNT
fi
REMOTE
  fi
}

# Of each step its own code: callers test it, which switches `set -e` off in here.
install() {
  tpus tpu-vm scp "$archive" "$name:jxfer.tar.gz" --worker=all &&
    on_all_hosts "$(install_command)"
}

run() {
  local code lost=0 refused=false remote
  # At a shutdown SIGTERM is followed at once by SIGHUP, which would end jxfer while it saves. A
  # flock that forks would be ended by the SIGTERM, and its exit code taken for jxfer's.
  remote="trap '' HUP; cd jxfer && PATH=\"\$HOME/jxfer-env/bin:\$PATH\" PYTHONUNBUFFERED=1 exec \
flock --no-fork -w 900 -E $PREEMPTED ../jxfer.lock $(quote "$@")"
  while :; do
    wait_until_ready
    code=0
    { install && on_all_hosts "$remote"; } || code=$?
    case $code in
      0) return ;;
      "$USER_ERROR")
        # gcloud repeats the command on a host whose connection was lost, on that one alone: if the
        # others are done by then, it waits for them in vain and says 2.
        if ((hosts < 2)) || $refused; then return "$code"; fi
        lost=0 refused=true
        ;;
      "$PREEMPTED") lost=0 refused=false ;;
      *)
        # A slice that is going away says so a little later.
        sleep "$POLL"
        if [[ $(ask queue_state) == ACTIVE && $(ask node_state) == READY* ]]; then
          lost=$((lost + 1))
          if ((code != CONNECTION_LOST || lost >= PATIENCE)); then return "$code"; fi
        else
          lost=0 refused=false
        fi
        ;;
    esac
    say "exit code $code: running the same command again"
    sleep "$POLL"
  done
}

if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
  usage
  exit $(($# == 0 ? 2 : 0))
fi
subcommand=$1
shift
name='' zone='' type='' runtime='' project='' bucket='' spot='' dry_run=false hosts=1
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --spot) spot=yes ;;
    --dry-run) dry_run=true ;;
    --name | --zone | --type | --runtime | --project | --bucket)
      if (($# < 2)) || [[ -z $2 || $2 == -* ]]; then fail "$1 needs a value"; fi
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    *) fail "no option $1; scripts/tpu_vm.sh --help shows them" ;;
  esac
  shift
done
if (($#)); then shift; fi
case $subcommand in
  create | run) needed='name zone type runtime' ;;
  install | delete) needed='name zone' ;;
  *) fail "no subcommand $subcommand; there are create, install, run, delete" ;;
esac
for option in $needed; do
  if [[ -z ${!option} ]]; then fail "$subcommand needs --$option"; fi
done
if [[ $subcommand == run ]]; then
  if (($# == 0)); then fail "run needs a command after --, such as: -- jxfer train --help"; fi
elif (($#)); then
  fail "$subcommand takes no command"
fi
bucket=${bucket#gs://}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
archive=$scratch/jxfer.tar.gz
# In a folder that is still there when the commands are pasted.
if $dry_run; then archive=$PWD/jxfer.tar.gz; fi
case $subcommand in
  create | delete) "$subcommand" ;;
  install)
    pack
    install
    ;;
  run)
    pack
    run "$@"
    ;;
esac
