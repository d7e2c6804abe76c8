# What the test machine's scripts have in common; to be sourced. Counts in `failed` what did not hold.
# shellcheck shell=bash disable=SC2034
failed=0

# holds WHAT COMMAND...: the command must succeed.
holds() {
  local what=$1 said
  shift
  if said=$("$@" 2>&1); then
    echo "ok      $what"
  else
    echo "FAILED  $what: $* -> $(tail -c 1000 <<<"$said")"
    failed=$((failed + 1))
  fi
}

# equal WHAT GOT WANTED
equal() { holds "$1 ($3)" test "$2" = "$3"; }

# comes SECONDS WHAT COMMAND...: the command must succeed within that time, or VM_PATIENCE times as long on a busy machine.
comes() {
  local end=$((SECONDS + $1 * ${VM_PATIENCE:-1})) what=$2 said
  shift 2
  until said=$("$@" 2>&1); do
    if [ $SECONDS -ge $end ]; then
      echo "FAILED  $what: $* -> $(tail -c 1000 <<<"$said")"
      failed=$((failed + 1))
      return 1
    fi
    sleep 0.5
  done
  echo "ok      $what"
}

# The cgroup of a process on version 2.
cgroup_of() { cut -d: -f3 "/proc/$1/cgroup"; }
