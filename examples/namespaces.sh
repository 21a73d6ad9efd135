#!/bin/sh
# One path, two meanings: `examples/namespaces.sh DIR`, where DIR is the mount point of a tree.
# Two tasks run the same command; what /mnt is, and whether /usr/bin/id is there, is each one's own.
set -eu
cd "${1:?usage: namespaces.sh DIR}"

red=$(cat task/new) blue=$(cat task/new)
for task in $red $blue; do
    mkdir -p "tmp/ns-$task"
    echo "cmd sh -c 'cat /mnt/colour; command -v id || echo no id'" >"task/$task/ctl"
    echo "bind -r /tmp/ns-$task /mnt" >"task/$task/ns/ctl"
done
echo red >"tmp/ns-$red/colour"
echo blue >"tmp/ns-$blue/colour"
echo "mask /usr/bin/id" >"task/$blue/ns/ctl"

for task in $red $blue; do
    echo start >"task/$task/ctl"
    cat "task/$task/fd/1"
done
rm -r "tmp/ns-$red" "tmp/ns-$blue"
