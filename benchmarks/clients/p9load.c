/* A 9P2000.L load generator: CONNECTIONS connections with DEPTH requests in flight on each, in one thread.
 *
 *   p9load ADDRESS ANAME OPERATION CONNECTIONS DEPTH MSIZE SIZE SECONDS PID
 *
 * ADDRESS is a unix socket's path or host:port. OPERATION, on the tree that benchmarks/ninep.py makes:
 *   getattr   Tgetattr of one file          cycle  walk + open + read SIZE + clunk of a small file
 *   readdir   walk + open + list + clunk    read, write  SIZE bytes, sequentially, of one open file
 * Every reply is checked. Prints one line of JSON; PID's CPU time over the run gives the server's cost per operation.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    RLERROR = 7, TLOPEN = 12, TGETATTR = 24, TREADDIR = 40, TVERSION = 100, TATTACH = 104,
    TWALK = 110, TREAD = 116, TWRITE = 118, TCLUNK = 120,
};
enum { HEADER = 7, IO_OVERHEAD = 24, ROOT_FID = 0, FILE_FID = 1, FIRST_LANE_FID = 100 };
enum { FILES = 1000, ENTRIES = 1000 };
static const uint64_t FILE_SIZE = 64ull << 20;
static const double WARM_UP = 0.3;
enum { MAX_SAMPLES = 1 << 21 };

typedef enum { GETATTR, CYCLE, READDIR, READ, WRITE, OPERATIONS } operation_t;
static const char *const NAMES[OPERATIONS] = {"getattr", "cycle", "readdir", "read", "write"};

typedef struct {            /* one of the requests in flight; its number is the tag */
    int step;
    uint64_t offset;        /* of a read or write; the last directory offset */
    uint32_t seen;          /* directory entries */
    double started;
} lane_t;

typedef struct {
    int fd;
    uint8_t *in, *out;
    size_t start, end, room, queued;
    uint64_t next;          /* offset of the next read or write; number of the next file */
    lane_t *lanes;
} connection_t;

static operation_t operation;
static uint32_t msize, io_size;
static size_t out_room;
static uint8_t *payload;
static uint64_t operations, bytes;
static float *samples;
static size_t sampled;

static void die(const char *what) {
    fprintf(stderr, "p9load: %s: %s\n", what, errno ? strerror(errno) : "unexpected reply");
    exit(1);
}
static void check(int holds, const char *what) {
    if (!holds) {
        errno = 0;
        die(what);
    }
}
static double seconds(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) die("clock");
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Little-endian fields, as on every machine this runs on. */
static uint8_t *put(uint8_t *at, uint64_t value, int width) {
    memcpy(at, &value, width);
    return at + width;
}
static uint8_t *put_string(uint8_t *at, const char *text, size_t length) {
    at = put(at, length, 2);
    memcpy(at, text, length);
    return at + length;
}
static uint64_t get(const uint8_t *at, int width) {
    uint64_t value = 0;
    memcpy(&value, at, width);
    return value;
}

static void transmit(connection_t *c) {
    size_t done = 0;
    while (done < c->queued) {
        ssize_t n = send(c->fd, c->out + done, c->queued - done, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR) die("send");
        if (n > 0) done += n;
    }
    c->queued = 0;
}

static uint8_t *begin(connection_t *c, int type, int tag, size_t body) {
    if (c->queued + HEADER + body > out_room) transmit(c);
    uint8_t *at = c->out + c->queued;
    c->queued += HEADER + body;
    return put(put(put(at, HEADER + body, 4), type, 1), tag, 2);
}
static void send_fid(connection_t *c, int type, int tag, uint32_t fid) {
    put(begin(c, type, tag, 4), fid, 4);
}
static void send_open(connection_t *c, int tag, uint32_t fid, uint32_t flags) {
    put(put(begin(c, TLOPEN, tag, 8), fid, 4), flags, 4);
}
static void send_range(connection_t *c, int type, int tag, uint32_t fid, uint64_t offset, uint32_t count) {
    put(put(put(begin(c, type, tag, 16), fid, 4), offset, 8), count, 4);
}
static void send_walk(connection_t *c, int tag, uint32_t fid, uint32_t newfid, const char *first, const char *second) {
    size_t n1 = strlen(first), n2 = second ? strlen(second) : 0;
    uint8_t *at = begin(c, TWALK, tag, 10 + 2 + n1 + (second ? 2 + n2 : 0));
    at = put_string(put(put(put(at, fid, 4), newfid, 4), second ? 2 : 1, 2), first, n1);
    if (second) put_string(at, second, n2);
}
static void send_write(connection_t *c, int tag, uint64_t offset) {
    uint8_t *at = begin(c, TWRITE, tag, 16 + io_size);
    memcpy(put(put(put(at, FILE_FID, 4), offset, 8), io_size, 4), payload, io_size);
}

static uint64_t advance(connection_t *c) {
    uint64_t offset = c->next;
    c->next = offset + 2 * (uint64_t)io_size > FILE_SIZE ? 0 : offset + io_size;
    return offset;
}

static void launch(connection_t *c, int tag) {
    lane_t *lane = &c->lanes[tag];
    char name[16];
    lane->step = 0;
    lane->started = seconds(CLOCK_MONOTONIC);
    switch (operation) {
    case GETATTR:
        put(put(begin(c, TGETATTR, tag, 12), FILE_FID, 4), 0x7ff, 8);
        break;
    case CYCLE:
        snprintf(name, sizeof name, "f%03d", (int)(c->next++ % FILES));
        send_walk(c, tag, ROOT_FID, FIRST_LANE_FID + tag, "small", name);
        break;
    case READDIR:
        lane->offset = lane->seen = 0;
        send_walk(c, tag, ROOT_FID, FIRST_LANE_FID + tag, "directory", NULL);
        break;
    case READ:
        send_range(c, TREAD, tag, FILE_FID, advance(c), io_size);
        break;
    default:
        send_write(c, tag, advance(c));
    }
}

/* Go on with a lane whose request was answered; returns whether its operation is done. */
static int proceed(connection_t *c, int tag, const uint8_t *frame, uint32_t size) {
    lane_t *lane = &c->lanes[tag];
    uint32_t fid = FIRST_LANE_FID + tag, count = size >= HEADER + 4 ? get(frame + HEADER, 4) : 0;
    int type = frame[4] - 1;
    if (frame[4] == RLERROR) errno = count, die("Rlerror");
    if (operation == GETATTR) {
        check(type == TGETATTR && size == 160, "getattr");
        return 1;
    }
    if (operation == READ || operation == WRITE) {
        check(type == (operation == READ ? TREAD : TWRITE) && count == io_size, "read or write");
        bytes += count;
        return 1;
    }
    switch (type) {
    case TWALK:
        check(get(frame + HEADER, 2) == (operation == CYCLE ? 2 : 1), "walk");
        send_open(c, tag, fid, 0);
        return 0;
    case TLOPEN:
        if (operation == CYCLE)
            send_range(c, TREAD, tag, fid, 0, io_size);
        else
            send_range(c, TREADDIR, tag, fid, 0, msize - IO_OVERHEAD);
        return 0;
    case TREAD:
        check(count == io_size, "read of a small file");
        send_fid(c, TCLUNK, tag, fid);
        return 0;
    case TREADDIR:
        for (const uint8_t *at = frame + HEADER + 4, *stop = at + count; at < stop; at += 24 + get(at + 22, 2)) {
            lane->offset = get(at + 13, 8);
            lane->seen++;
        }
        if (count) {
            send_range(c, TREADDIR, tag, fid, lane->offset, msize - IO_OVERHEAD);
        } else {
            check(lane->seen == ENTRIES || lane->seen == ENTRIES + 2, "directory");
            send_fid(c, TCLUNK, tag, fid);
        }
        return 0;
    default:
        check(type == TCLUNK, "clunk");
        return 1;
    }
}

static void receive(connection_t *c) {
    if (c->start == c->end) c->start = c->end = 0;
    if (c->room - c->end < msize) {
        memmove(c->in, c->in + c->start, c->end - c->start);
        c->end -= c->start;
        c->start = 0;
    }
    ssize_t n = recv(c->fd, c->in + c->end, c->room - c->end, 0);
    if (n == 0) die("the server hung up");
    if (n < 0 && errno != EINTR) die("recv");
    if (n > 0) c->end += n;
}
static uint8_t *frame(connection_t *c, uint32_t *size) {
    if (c->end - c->start < HEADER) return NULL;
    *size = get(c->in + c->start, 4);
    check(*size >= HEADER && *size <= msize, "frame size");
    if (c->end - c->start < *size) return NULL;
    c->start += *size;
    return c->in + c->start - *size;
}
static uint8_t *call(connection_t *c, int type) {
    uint32_t size;
    uint8_t *reply;
    transmit(c);
    while (!(reply = frame(c, &size))) receive(c);
    if (reply[4] == RLERROR) errno = get(reply + HEADER, 4), die("set-up");
    check(reply[4] == type + 1, "set-up");
    return reply;
}

static int dial(const char *address) {
    const char *colon = strrchr(address, ':');
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in remote = {.sin_family = AF_INET};
    int fd = socket(colon ? AF_INET : AF_UNIX, SOCK_STREAM, 0), one = 1, failed;
    if (colon) {
        char host[64] = "";
        strncpy(host, address, colon - address < 63 ? colon - address : 63);
        inet_pton(AF_INET, host, &remote.sin_addr);
        remote.sin_port = htons(atoi(colon + 1));
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        failed = connect(fd, (struct sockaddr *)&remote, sizeof remote);
    } else {
        strncpy(local.sun_path, address, sizeof local.sun_path - 1);
        failed = connect(fd, (struct sockaddr *)&local, sizeof local);
    }
    if (failed) die(address);
    return fd;
}

static void set_up(connection_t *c, int index, const char *address, const char *aname, int depth) {
    char name[16];
    c->fd = dial(address);
    c->room = 4 * (size_t)msize;
    c->in = malloc(c->room);
    c->out = malloc(out_room);
    c->lanes = calloc(depth, sizeof *c->lanes);
    put_string(put(begin(c, TVERSION, 0xffff, 14), msize, 4), "9P2000.L", 8);
    uint32_t offered = get(call(c, TVERSION) + HEADER, 4);
    check(offered <= msize && io_size + IO_OVERHEAD <= offered, "msize");
    msize = offered;
    uint8_t *at = put(put(begin(c, TATTACH, 0, 20 + strlen(aname)), ROOT_FID, 4), ~0u, 4);
    put(put_string(put_string(at, "root", 4), aname, strlen(aname)), 0, 4);
    call(c, TATTACH);
    if (operation == CYCLE || operation == READDIR) return;
    snprintf(name, sizeof name, operation == WRITE ? "w%02d" : operation == READ ? "big" : "f%03d", index % 64);
    if (operation == READ)
        send_walk(c, 0, ROOT_FID, FILE_FID, name, NULL);
    else
        send_walk(c, 0, ROOT_FID, FILE_FID, operation == WRITE ? "written" : "small", name);
    call(c, TWALK);
    if (operation == GETATTR) return;
    send_open(c, 0, FILE_FID, operation == WRITE ? 1 : 0);
    call(c, TLOPEN);
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 10) return fprintf(stderr, "usage: see the top of p9load.c\n"), 2;
    while (operation < OPERATIONS && strcmp(argv[3], NAMES[operation])) operation++;
    check(operation < OPERATIONS, argv[3]);
    int connections = atoi(argv[4]), depth = atoi(argv[5]);
    msize = atoi(argv[6]);
    io_size = atoi(argv[7]);
    double duration = atof(argv[8]);
    clockid_t server;
    if (clock_getcpuclockid(atoi(argv[9]), &server)) die("server's clock");
    out_room = io_size + 64 > 65536 ? io_size + 64 : 65536;
    payload = malloc(io_size + 1);
    memset(payload, 'p', io_size + 1);
    samples = malloc(MAX_SAMPLES * sizeof *samples);

    int epoll = epoll_create1(0);
    connection_t *all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        set_up(&all[i], i, argv[1], argv[2], depth);
        epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &event);
    }
    for (int i = 0; i < connections; i++) {
        for (int tag = 0; tag < depth; tag++) launch(&all[i], tag);
        transmit(&all[i]);
    }
    double begun = seconds(CLOCK_MONOTONIC), now = begun, from = 0, took = 0, cpu = 0, spent = 0;
    uint64_t counted = 0, moved = 0;
    int under_way = connections * depth; /* all are answered before the end: diod does not survive a hasty goodbye */
    struct rusage before, after;
    while (under_way) {
        struct epoll_event ready[64];
        int n = connections > 1 ? epoll_wait(epoll, ready, 64, -1) : 1;
        for (int i = 0; i < n; i++) {
            connection_t *c = connections > 1 ? ready[i].data.ptr : all;
            uint32_t size;
            receive(c);
            for (uint8_t *reply; (reply = frame(c, &size));) {
                int tag = get(reply + 5, 2);
                check(tag < depth, "tag");
                if (!proceed(c, tag, reply, size)) continue;
                operations++;
                now = seconds(CLOCK_MONOTONIC);
                if (sampled < MAX_SAMPLES) samples[sampled++] = now - c->lanes[tag].started;
                if (took)
                    under_way--;
                else
                    launch(c, tag);
            }
            transmit(c);
        }
        if (!from && now >= begun + WARM_UP) {
            operations = bytes = sampled = 0;
            from = now;
            cpu = seconds(server);
            getrusage(RUSAGE_SELF, &before);
        } else if (from && !took && now >= from + duration) {
            took = now - from;
            spent = seconds(server) - cpu;
            counted = operations;
            moved = bytes;
            getrusage(RUSAGE_SELF, &after);
        }
    }
    double own = after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec +
                 1e-6 * (after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec);
    qsort(samples, sampled, sizeof *samples, ascending);
    printf("{\"operations\": %llu, \"per_second\": %.0f, \"server_us\": %.2f, \"client_us\": %.2f, \"mb_per_second\": %.1f, "
           "\"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           (unsigned long long)counted, counted / took, spent * 1e6 / counted, own * 1e6 / counted,
           moved / took / 1e6, samples[sampled / 2] * 1e6, samples[sampled * 99 / 100] * 1e6);
    return 0;
}
