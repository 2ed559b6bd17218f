#!/usr/bin/env bash
# Shows what Dyetrace does: raises the default lab, checks every pair, breaks the network in four
# ways and has each named, heals, checks again. Leaves nothing behind, however it ends.
set -euo pipefail

binary=$(realpath "${1:?usage: demo.sh PATH-OF-DYETRACE}")
export DYETRACE_LAB=demo-$$

if [ -t 1 ] && [ -z "${NO_COLOR-}" ] && [ "${TERM-dumb}" != dumb ]; then
	head=$'\e[1;36m' cmd=$'\e[1m' off=$'\e[0m'
else
	head='' cmd='' off=''
fi
say() { printf '\n%s── %s%s\n' "$head" "$*" "$off"; }
# Shows a command as one would type it, and runs it.
run() {
	printf '%s$ dyetrace %s%s\n' "$cmd" "$*" "$off"
	"$binary" "$@"
}

down() {
	code=$?
	trap - EXIT INT TERM
	say "The lab goes down"
	"$binary" lab down --lab "$DYETRACE_LAB" || code=1
	exit "$code"
}
trap down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Breaks the lab by a kind, wants check to find a fault (exit code 1), and heals.
show_break() {
	local kind=$1 code=0
	say "$2"
	run lab break "$kind" --lab "$DYETRACE_LAB"
	run check --all --paths 1 || code=$?
	if [ "$code" != 1 ]; then
		printf 'demo: check ended with exit code %d after break %s; it should be 1\n' "$code" "$kind" >&2
		exit 1
	fi
	run lab heal "$kind" --lab "$DYETRACE_LAB"
}

say "A fabric, four hypervisors with Open vSwitch, ten guests in three networks, a controller"
run lab up --lab "$DYETRACE_LAB"
run instances

say "One stained packet for each pair, on the way that the tenant's packets take"
run check --all

show_break tunnel-remote "A tunnel points at the wrong host"
show_break drop-flow "A flow drops what is meant for one guest"
show_break guest-down "A guest's interface is down"
show_break tap-off "A guest's tap has been taken off the bridge"

say "All is healed"
run check --all
run check blue-1 green-4
