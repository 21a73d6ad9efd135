#!/bin/sh
# A walk through a served tree with nothing but cat and echo: `examples/tour.sh DIR`, where DIR is its mount point.
# Shows what is typed and what comes back; ends with 1 at the first thing that is not as it should be.
set -eu
cd "${1:?usage: tour.sh DIR}"

say() { printf '\n# %s\n' "$*"; }

# run COMMAND: show it as if typed here, and run it.
run() {
    printf '$ %s\n' "$1"
    eval "$1"
}

# expect COMMAND TEXT: the same, for a command that must print TEXT.
expect() {
    printf '$ %s\n' "$1"
    said=$(eval "$1")
    printf '%s\n' "$said"
    [ "$said" = "$2" ] || { printf 'tour.sh: expected %s\n' "$2" >&2; exit 1; }
}

say 'Reading "new" allocates a task; the number names its directory.'
run 'id=$(cat task/new); echo $id'
expect 'cat task/$id/status' allocated

say 'It is configured by writing files, and every control file is its own manual.'
run 'head -4 task/$id/ctl'
run 'echo "cmd /bin/sh -c '\''echo hello from \$GREETER; echo trouble >&2; exit 3'\''" > task/$id/ctl'
run 'echo "PATH=/bin:/usr/bin" > task/$id/env'
run 'echo "GREETER=tour" > task/$id/env'
expect 'cat task/$id/env' 'GREETER=tour
PATH=/bin:/usr/bin'
run 'echo /tmp > task/$id/cwd'

say 'A refused command is an error of that very write.'
run 'echo "memlimit lots" > task/$id/ctl || echo refused'
run 'echo "memlimit 100M" > task/$id/ctl'
run 'echo "nice 10" > task/$id/ctl'

say 'Start it, read what it wrote, wait for its exit code.'
run 'echo start > task/$id/ctl'
expect 'cat task/$id/fd/1' 'hello from tour'
expect 'cat task/$id/fd/2' trouble
expect 'cat task/$id/wait' 3
expect 'cat task/$id/status' exited

say 'Its namespace is its own: what is bound there is there, what is unbound is not.'
run 'mkdir -p tmp/shared && echo "from outside" > tmp/shared/note'
run 'id=$(cat task/new)'
run 'echo "bind /tmp/shared /mnt" > task/$id/ns/ctl'
run 'echo "cmd cat /mnt/note" > task/$id/ctl'
run 'echo start > task/$id/ctl'
expect 'cat task/$id/fd/1' 'from outside'

say 'A task that runs is seen, paused, and killed.'
run 'id=$(cat task/new)'
run 'echo "cmd sleep 1000" > task/$id/ctl'
run 'echo start > task/$id/ctl'
expect 'cat task/$id/status' running
run 'echo pause > task/$id/ctl'
expect 'cat task/$id/status' stopped
run 'echo resume > task/$id/ctl'
run 'cat task/$id/stat/mem'
run 'echo "kill 15" > task/$id/ctl'
expect 'cat task/$id/wait' 143

say 'Output goes where its descriptor points.'
run 'id=$(cat task/new)'
run 'echo "dup /tmp/output.log" > task/$id/fd/1ctl'
run 'echo "cmd echo kept" > task/$id/ctl'
run 'echo start > task/$id/ctl'
expect 'cat task/$id/wait' 0
expect 'cat tmp/output.log' kept

say 'Two tasks talk through a pipe.'
run 'pipe=$(cat cap/new/pipe)'
run 'from=$(cat task/new); to=$(cat task/new)'
run 'echo "dup /cap/$pipe/w" > task/$from/fd/1ctl'
run 'echo "dup /cap/$pipe/r" > task/$to/fd/0ctl'
run 'echo "cmd printf '\''b\\na\\n'\''" > task/$from/ctl'
run 'echo "cmd sort" > task/$to/ctl'
run 'echo start > task/$to/ctl; echo start > task/$from/ctl'
expect 'cat task/$to/fd/1' 'a
b'

say 'That was the whole interface.'
