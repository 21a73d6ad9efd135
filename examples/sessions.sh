#!/bin/sh
# Two sessions that remember, and know nothing of each other: `examples/sessions.sh DIR`, DIR the mount point of a tree.
# What works here is a plain command, run once for each prompt; an agent is asked in just the same way.
set -eu
cd "${1:?usage: sessions.sh DIR}"

# ask SESSION MESSAGE: give a prompt, wait for the end of its task and show the answer.
ask() {
    exec 3<>"sessions/$1/prompt"
    echo "$2" >&3
    read -r task <&3
    exec 3>&-
    grep -q -m1 "\"turn\": \"$task\", \"event\": \"ended\"" "sessions/$1/events"
    cat "sessions/$1/history/$task/output"
}

for session in red blue; do
    echo "open $session run 'sh -c \"{ cat; echo; } >>~/said; echo \$(cat ~/said)\"'" >sessions/ctl
done
ask red apples
ask blue pears
ask red plums
for session in red blue; do
    echo "remove $session" >sessions/ctl
done
