#!/bin/sh
# Three tasks in a row, joined by kernel pipes: `examples/pipeline.sh DIR`, where DIR is the mount point of a tree.
# Prints the three commonest first letters of the programs in /usr/bin, as `ls /usr/bin | cut -c1 | sort | ...` would.
set -eu
cd "${1:?usage: pipeline.sh DIR}/task"

list=$(cat new) cut=$(cat new) count=$(cat new)

echo "cmd ls /usr/bin" >"$list/ctl"
echo "cmd cut -c1" >"$cut/ctl"
echo "cmd sh -c 'sort | uniq -c | sort -rn | head -3'" >"$count/ctl"

echo "pipe $list/fd/1" >"$cut/fd/0ctl"
echo "pipe $cut/fd/1" >"$count/fd/0ctl"

for task in "$list" "$cut" "$count"; do
    echo start >"$task/ctl"
done
cat "$count/fd/1"
[ "$(cat "$count/wait")" = 0 ]
