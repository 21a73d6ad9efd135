/* What a program sees of a file tree, in words that are the same on every system: run it on two and compare. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *name_of(int number) {
    switch (number) {
    case 0: return "ok";
    case EACCES: return "EACCES";
    case EBADF: return "EBADF";
    case EEXIST: return "EEXIST";
    case EINVAL: return "EINVAL";
    case EISDIR: return "EISDIR";
    case ELOOP: return "ELOOP";
    case ENAMETOOLONG: return "ENAMETOOLONG";
    case ENOENT: return "ENOENT";
    case ENOTDIR: return "ENOTDIR";
    case ENOTEMPTY: return "ENOTEMPTY";
    case EPERM: return "EPERM";
    default: return strerror(number);
    }
}

static void say(const char *what, long result) {
    printf("%s: %s\n", what, result < 0 ? name_of(errno) : "ok");
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void list(const char *path) {
    char *names[512];
    size_t count = 0;
    DIR *dir = opendir(path);
    if (!dir) {
        say("opendir", -1);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir)) && count < 512;) names[count++] = strdup(entry->d_name);
    qsort(names, count, sizeof *names, by_name);
    printf("%zu entries:", count);
    for (size_t i = 0; i < count; i++) {
        if (i < 8) printf(" %s", names[i]);
        free(names[i]);
    }
    printf("\n");
    closedir(dir);
}

static void show(const char *path, int follow) {
    struct stat st;
    if ((follow ? stat : lstat)(path, &st) < 0) {
        say(path, -1);
        return;
    }
    const char *kind = S_ISDIR(st.st_mode) ? "directory" : S_ISLNK(st.st_mode) ? "symlink" : "file";
    if (S_ISREG(st.st_mode)) printf("%s: %s of %lld, %d names\n", path, kind, (long long)st.st_size, (int)st.st_nlink);
    else printf("%s: %s\n", path, kind);
}

static void cat(const char *path) {
    char text[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        say(path, fd);
        return;
    }
    ssize_t size = read(fd, text, sizeof text - 1);
    if (size < 0) say("read", size);
    else printf("%s: %.*s\n", path, (int)size, text);
    close(fd);
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) say(path, -1);
    close(fd);
}

static void sparse(void) {
    char back[64];
    struct iovec parts[] = {{back, 3}, {back + 10, 5}};
    int fd = open("sparse", O_CREAT | O_RDWR, 0644);
    say("extend", ftruncate(fd, 1 << 20));
    printf("write far %zd\n", pwrite(fd, "end", 3, (1 << 20) - 3));
    memset(back, 1, sizeof back);
    printf("hole %zd", pread(fd, back, 4, 4096));
    printf(" %d %d %d %d\n", back[0], back[1], back[2], back[3]);
    lseek(fd, -5, SEEK_END);
    printf("readv %zd", readv(fd, parts, 2));
    printf(" %d %d %c%c, at %lld\n", back[0], back[2], back[10], back[11], (long long)lseek(fd, 0, SEEK_CUR));
    say("negative size", ftruncate(fd, -1));
    say("seek before the start", lseek(fd, -1, SEEK_SET));
    say("shrink", ftruncate(fd, 2));
    printf("read beyond %zd\n", read(fd, back, 10));
    close(fd);
    show("sparse", 1);
}

static void times(void) {
    struct timespec when[2] = {{1000, 5}, {2000, 999999999}};
    struct stat st;
    int fd = open("sparse", O_WRONLY);
    say("futimens", futimens(fd, when));
    fstat(fd, &st);
    printf("%lld.%09ld %lld.%09ld\n", (long long)st.st_atim.tv_sec, (long)st.st_atim.tv_nsec,
           (long long)st.st_mtim.tv_sec, (long)st.st_mtim.tv_nsec);
    when[0] = when[1] = (struct timespec){77, 0};
    say("of a link", utimensat(AT_FDCWD, "to-b", when, AT_SYMLINK_NOFOLLOW));
    lstat("to-b", &st);
    printf("link %lld", (long long)st.st_mtim.tv_sec);
    stat("b", &st);
    printf(", file %d\n", st.st_mtim.tv_sec > 77);
    close(fd);
}

static void renames(void) {
    struct stat one, two;
    put("old", "the old one");
    put("new", "the new one");
    stat("new", &one);
    int fd = open("old", O_RDONLY);
    say("replace", rename("new", "old"));
    stat("old", &two);
    printf("same file %d\n", one.st_ino == two.st_ino);
    cat("old");
    char back[16] = {0};
    printf("replaced, still open: %zd %.15s\n", read(fd, back, 15), back);
    close(fd);
    say("to itself", rename("old", "old"));
    say("mkdir", mkdir("d1", 0755));
    say("mkdir", mkdir("d2", 0755));
    say("mkdir", mkdir("d2/d3", 0755));
    say("directory over a full one", rename("d1", "d2"));
    say("into itself", rename("d2", "d2/d3/d4"));
    say("directory over an empty one", rename("d2", "d1"));
    say("with slashes", rename("d1/", "d2/"));
    show("d2/d3", 1);
    say("file with a slash", rename("old/", "x"));
    say("rmdir of a link", rmdir("to-b"));
    say("rmdir", rmdir("d2/d3"));
    say("rmdir", rmdir("d2"));
    say("rmdir again", rmdir("d2"));
    say("link to a directory's name", link("old", "nowhere/x"));
    say("symlink below nothing", symlink("x", "none/x"));
    say("unlink link", unlink("to-b"));
    show("b", 1);
}

static void names(const char *top) {
    const char *odd[] = {"with space", "\303\244\303\266\303\274", "-n", "a\\b", "new\nline", "...", " "};
    say("mkdir", mkdir("names", 0755));
    say("chdir", chdir("names"));
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) put(odd[i], odd[i]);
    list(".");
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) say("unlink", unlink(odd[i]));
    char deep[600] = "";
    for (int i = 0; i < 40; i++) {
        strcat(deep, i ? "/deep" : "deep");
        if (mkdir(deep, 0755) < 0) say(deep, -1);
    }
    strcat(deep, "/file");
    put(deep, "at the bottom");
    cat(deep);
    say("unlink", unlink(deep));
    for (int i = 0; i < 40; i++) {
        *strrchr(deep, '/') = 0;
        if (rmdir(deep) < 0) say(deep, -1);
    }
    list(".");
    say("chdir", chdir(top));
    say("rmdir", rmdir("names"));
}

static void directories(void) {
    struct dirent *entry;
    int fd = open(".", O_RDONLY | O_DIRECTORY), seen = 0, again = 0;
    say("directory as one", fd);
    say("file as a directory", open("b", O_RDONLY | O_DIRECTORY));
    say("openat", close(openat(fd, "b", O_RDONLY)));
    say("mkdirat", mkdirat(fd, "at", 0755));
    DIR *dir = fdopendir(fd);
    while ((entry = readdir(dir))) seen++;
    rewinddir(dir);
    while ((entry = readdir(dir))) again++;
    printf("twice %d\n", seen == again);
    rewinddir(dir);
    readdir(dir);
    long place = telldir(dir);
    entry = readdir(dir);
    char name[300];
    snprintf(name, sizeof name, "%s", entry->d_name);
    seekdir(dir, place);
    printf("continued %d\n", !strcmp(name, readdir(dir)->d_name));
    closedir(dir);
    say("access", access("at", F_OK));
    say("no access", access("nothing", F_OK));
    say("unlinkat", unlinkat(AT_FDCWD, "at", AT_REMOVEDIR));
}

int main(int argc, char **argv) {
    static char path[4200], name[32], big[100000], back[100000]; /* more than the stack of a module holds */
    if (argc != 2) return 2;
    snprintf(path, sizeof path, "%s/tree", argv[1]);
    say("mkdir", mkdir(path, 0755));
    say("mkdir again", mkdir(path, 0755));
    say("chdir", chdir(path));

    int fd = open("a", O_CREAT | O_EXCL | O_RDWR, 0644);
    say("create", fd);
    say("create again", open("a", O_CREAT | O_EXCL | O_RDWR, 0644));
    for (size_t i = 0; i < sizeof big; i++) big[i] = (char)(i * 31);
    printf("write %zd\n", write(fd, big, sizeof big));
    printf("pread %zd\n", pread(fd, back, sizeof back, 1000));
    printf("same %d\n", memcmp(big + 1000, back, sizeof big - 1000));
    printf("seek %lld\n", (long long)lseek(fd, -5, SEEK_END));
    printf("pwrite %zd\n", pwrite(fd, "xyz", 3, 200000));
    printf("read %zd\n", read(fd, back, 100));
    say("truncate", ftruncate(fd, 7));
    say("sync", fsync(fd));
    say("close", close(fd));
    show("a", 1);

    fd = open("a", O_WRONLY | O_APPEND);
    write(fd, " tail", 5);
    lseek(fd, 0, SEEK_SET);
    write(fd, " end", 4);
    close(fd);
    show("a", 1);
    fd = open("a", O_RDONLY);
    say("write to a reader", write(fd, "x", 1));
    close(fd);
    fd = open("b", O_CREAT | O_TRUNC | O_WRONLY, 0644);
    write(fd, "text of b", 9);
    close(fd);
    cat("b");

    say("symlink", symlink("b", "to-b"));
    say("symlink again", symlink("b", "to-b"));
    say("dangling", symlink("nowhere", "dangling"));
    say("loop", symlink("loop", "loop"));
    cat("to-b");
    cat("dangling");
    cat("loop");
    show("to-b", 0);
    show("to-b", 1);
    ssize_t size = readlink("to-b", back, sizeof back);
    printf("readlink %.*s\n", (int)size, back);
    say("readlink of a file", readlink("b", back, sizeof back));
    say("nofollow", open("to-b", O_RDONLY | O_NOFOLLOW));
    fd = open("dangling", O_CREAT | O_WRONLY, 0644);
    say("create through a link", fd);
    close(fd);
    show("nowhere", 1);

    say("link", link("b", "hard"));
    show("b", 1);
    say("link again", link("b", "hard"));
    say("rename", rename("hard", "c"));
    say("rename missing", rename("hard", "d"));
    say("mkdir", mkdir("sub", 0755));
    say("rename into", rename("c", "sub/c"));
    say("rename file over directory", rename("b", "sub"));
    say("rename directory over file", rename("sub", "b"));
    say("rmdir full", rmdir("sub"));
    say("unlink directory", unlink("sub") < 0 && (errno == EISDIR || errno == EPERM) ? 0 : -1);
    say("through a file", open("b/x", O_RDONLY));
    say("slash after a file", open("b/", O_RDONLY));
    say("open missing", open("missing", O_RDONLY));
    say("write a directory", open("sub", O_WRONLY));
    cat("sub/../sub/./c");
    memset(back, 'n', 300);
    back[300] = 0;
    say("long name", open(back, O_CREAT | O_WRONLY, 0644));

    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "sub/%03d", i);
        fd = open(name, O_CREAT | O_WRONLY, 0644);
        if (fd < 0) say(name, fd);
        close(fd);
    }
    list("sub");
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "sub/%03d", i);
        if (unlink(name) < 0) say(name, -1);
    }
    list("sub");
    say("unlink", unlink("sub/c"));
    say("rmdir", rmdir("sub"));
    list(".");

    fd = open("open", O_CREAT | O_RDWR, 0644);
    write(fd, "kept", 4);
    say("unlink open", unlink("open"));
    printf("still %zd\n", pread(fd, back, 10, 0));
    close(fd);
    show("open", 1);

    sparse();
    times();
    renames();
    names(path);
    directories();
    return 0;
}
