/* What a program sees of a file tree, in words that are the same on every system: run it on two and compare. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

int main(int argc, char **argv) {
    char path[4200], big[100000], back[100000];
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
        snprintf(path, sizeof path, "sub/%03d", i);
        fd = open(path, O_CREAT | O_WRONLY, 0644);
        if (fd < 0) say(path, fd);
        close(fd);
    }
    list("sub");
    for (int i = 0; i < 300; i++) {
        snprintf(path, sizeof path, "sub/%03d", i);
        if (unlink(path) < 0) say(path, -1);
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
    return 0;
}
