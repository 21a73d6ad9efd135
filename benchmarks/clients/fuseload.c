/* Load generator for a mounted filesystem.
 *
 *     fuseload MODE PATH CLIENTS SECONDS SERVER_PID
 *
 * MODE is one of
 *     stat    statx(2), uncached, of the files f00..f99 in the directory PATH
 *     cycle   open, read 4 KiB and close those files
 *     create  create and unlink files of its own in PATH
 *     seq     read the file PATH from begin to end, 1 MiB at a time
 *     random  read 4 KiB at random places of the file PATH
 *     exec    run the program PATH and wait for it
 *
 * Prints one JSON object: operations, seconds, and the CPU time that the server spent per operation in us
 * (0 without a server). Every client is a process of its own; any error ends the whole run with status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 100, BLOCK = 4096, CHUNK = 1 << 20, BATCH = 16, MAX_CLIENTS = 256 };

struct shared {
    volatile int ready, go;
    struct { long operations, bytes; } client[MAX_CLIENTS];
};

static struct shared *shared;
static double deadline;

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now))
        return 0;
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static double now(void) { return seconds_of(CLOCK_MONOTONIC); }

static void die(const char *what)
{
    fprintf(stderr, "fuseload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void name_of(char name[8], long number) { snprintf(name, 8, "f%02ld", number % FILES); }

static void one_stat(long number)
{
    char name[8];
    struct statx st;
    name_of(name, number);
    if (statx(AT_FDCWD, name, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &st))
        die(name);
}

static long one_cycle(long number)
{
    char name[8], block[BLOCK];
    name_of(name, number);
    int fd = open(name, O_RDONLY);
    if (fd < 0)
        die(name);
    long got = read(fd, block, sizeof block);
    if (got <= 0)
        die("read");
    close(fd);
    return got;
}

static void one_create(int client, long number)
{
    char name[32];
    snprintf(name, sizeof name, "new%d-%ld", client, number);
    int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (fd < 0)
        die(name);
    close(fd);
    if (unlink(name))
        die("unlink");
}

static void one_exec(char *path)
{
    extern char **environ;
    char *argv[] = {path, NULL};
    pid_t pid;
    int status;
    errno = posix_spawn(&pid, path, NULL, NULL, argv, environ);
    if (errno || waitpid(pid, &status, 0) < 0 || status)
        die(path);
}

static void run(const char *mode, char *path, int client)
{
    long operations = 0, bytes = 0;
    int fd = -1;
    struct stat st;
    char *chunk = malloc(CHUNK);
    unsigned long place = 88172645463325252UL + client;
    int in_directory = !strcmp(mode, "stat") || !strcmp(mode, "cycle") || !strcmp(mode, "create");

    if (in_directory ? chdir(path) : strcmp(mode, "exec") && (fd = open(path, O_RDONLY)) < 0)
        die(path);
    if (fd >= 0 && (fstat(fd, &st) || st.st_size < BLOCK))
        die("file too small");
    __sync_fetch_and_add(&shared->ready, 1);
    while (!shared->go)
        usleep(100);
    do {
        for (int i = 0; i < BATCH; i++, operations++) {
            if (!strcmp(mode, "stat"))
                one_stat(operations);
            else if (!strcmp(mode, "cycle"))
                bytes += one_cycle(operations);
            else if (!strcmp(mode, "create"))
                one_create(client, operations);
            else if (!strcmp(mode, "exec"))
                one_exec(path);
            else if (!strcmp(mode, "seq")) {
                long got = read(fd, chunk, CHUNK);
                if (got < 0 || (got == 0 && lseek(fd, 0, SEEK_SET)))
                    die("read");
                bytes += got;
            } else if (!strcmp(mode, "random")) {
                place ^= place << 13, place ^= place >> 7, place ^= place << 17;
                long got = pread(fd, chunk, BLOCK, (long)(place % (st.st_size / BLOCK)) * BLOCK);
                if (got <= 0)
                    die("pread");
                bytes += got;
            } else {
                errno = EINVAL;
                die(mode);
            }
        }
    } while (now() < deadline);
    shared->client[client].operations = operations;
    shared->client[client].bytes = bytes;
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fprintf(stderr, "usage: fuseload MODE PATH CLIENTS SECONDS SERVER_PID\n");
        return 2;
    }
    int clients = atoi(argv[3]), server = atoi(argv[5]), status, bad = 0;
    clockid_t clock = CLOCK_REALTIME;
    if (clients < 1 || clients > MAX_CLIENTS || (server && clock_getcpuclockid(server, &clock)))
        return 2;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    deadline = now() + atof(argv[4]);
    for (int client = 0; client < clients; client++) {
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            run(argv[1], argv[2], client);
            exit(0);
        }
    }
    while (shared->ready < clients && waitpid(-1, &status, WNOHANG) == 0)
        usleep(200);
    double cpu = server ? seconds_of(clock) : 0, began = now();
    shared->go = 1;
    while (wait(&status) > 0)
        bad |= status;
    double took = now() - began;
    cpu = server ? seconds_of(clock) - cpu : 0;
    long operations = 0, bytes = 0;
    for (int client = 0; client < clients; client++) {
        operations += shared->client[client].operations;
        bytes += shared->client[client].bytes;
    }
    printf("{\"operations\": %ld, \"seconds\": %.6f, \"server_us\": %.3f, \"bytes\": %ld}\n", operations, took,
           operations ? cpu * 1e6 / operations : 0, bytes);
    return bad ? 1 : 0;
}
