/* What WASI preview 1 promises, case by case, by its own functions: the cases of WebAssembly/wasi-testsuite and more.
 *
 *     preview1 FOLDER
 *
 * Every case has an empty directory of its own below FOLDER and prints "ok NAME", or a line for all that is wrong.
 * Where systems differ, all the errnos that the specification's test suite takes are taken here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

#define LENGTH(array) (sizeof(array) / sizeof *(array))
#define OK(call) answers(#call, __LINE__, call, 1, (__wasi_errno_t[]){0})
#define FAILS(call, ...) \
    answers(#call, __LINE__, call, LENGTH(((__wasi_errno_t[]){__VA_ARGS__})), (__wasi_errno_t[]){__VA_ARGS__})
#define HOLDS(condition) holds(#condition, __LINE__, condition)
#define ALL 0x3fffffffull
#define RW (__WASI_RIGHTS_FD_READ | __WASI_RIGHTS_FD_WRITE | __WASI_RIGHTS_FD_SEEK | __WASI_RIGHTS_FD_TELL)
#define FOLLOW __WASI_LOOKUPFLAGS_SYMLINK_FOLLOW

static const char *now;
static int wrong;

static int holds(const char *what, int line, int condition) {
    if (!condition) {
        printf("%s, line %d: not so: %s\n", now, line, what);
        wrong++;
    }
    return condition;
}

static int answers(const char *what, int line, __wasi_errno_t got, size_t count, const __wasi_errno_t *expected) {
    for (size_t i = 0; i < count; i++)
        if (got == expected[i]) return 1;
    printf("%s, line %d: errno %d: %s\n", now, line, got, what);
    wrong++;
    return 0;
}

/* With lengths of its own, so that a path may hold a NUL. */
__attribute__((import_module("wasi_snapshot_preview1"), import_name("path_open"))) int raw_path_open(
    int fd, int lookup, const char *path, size_t size, int oflags, long long base, long long inheriting, int flags,
    __wasi_fd_t *opened);

static __wasi_fd_t opened(__wasi_fd_t dir, const char *path, __wasi_oflags_t oflags, __wasi_rights_t rights) {
    __wasi_fd_t fd = -1;
    OK(__wasi_path_open(dir, 0, path, oflags, rights, ALL, 0, &fd));
    HOLDS(fd > 2);
    return fd;
}

static void make(__wasi_fd_t dir, const char *path) {
    OK(__wasi_fd_close(opened(dir, path, __WASI_OFLAGS_CREAT | __WASI_OFLAGS_EXCL, RW)));
}

static __wasi_fd_t folder(__wasi_fd_t dir, const char *path) {
    OK(__wasi_path_create_directory(dir, path));
    return opened(dir, path, __WASI_OFLAGS_DIRECTORY, ALL & ~__WASI_RIGHTS_FD_WRITE & ~__WASI_RIGHTS_FD_ALLOCATE);
}

static void put(__wasi_fd_t fd, const char *text) {
    __wasi_ciovec_t vector = {(const uint8_t *)text, strlen(text)};
    __wasi_size_t count = 0;
    OK(__wasi_fd_write(fd, &vector, 1, &count));
    HOLDS(count == strlen(text));
}

static const char *get(__wasi_fd_t fd, __wasi_size_t size) {
    static char text[256];
    __wasi_iovec_t vector = {(uint8_t *)text, size};
    __wasi_size_t count = 0;
    OK(__wasi_fd_read(fd, &vector, 1, &count));
    text[count] = 0;
    return text;
}

static __wasi_filesize_t at(__wasi_fd_t fd) {
    __wasi_filesize_t place = -1;
    OK(__wasi_fd_tell(fd, &place));
    return place;
}

static void rewind_to(__wasi_fd_t fd, __wasi_filedelta_t place) {
    __wasi_filesize_t now_at;
    OK(__wasi_fd_seek(fd, place, __WASI_WHENCE_SET, &now_at));
    HOLDS(now_at == (__wasi_filesize_t)place);
}

static __wasi_filestat_t stat_at(__wasi_fd_t dir, const char *path, __wasi_lookupflags_t flags) {
    __wasi_filestat_t st = {0};
    OK(__wasi_path_filestat_get(dir, flags, path, &st));
    return st;
}

static __wasi_errno_t try_open(__wasi_fd_t dir, const char *path, __wasi_lookupflags_t lookup, __wasi_oflags_t oflags) {
    __wasi_fd_t fd;
    __wasi_errno_t error = __wasi_path_open(dir, lookup, path, oflags, 0, 0, 0, &fd);
    if (!error) OK(__wasi_fd_close(fd));
    return error;
}

#define CASE(name) static void name(__attribute__((unused)) __wasi_fd_t dir)

/* Opening */

CASE(open_of_what_is_missing) {
    FAILS(try_open(dir, "no", 0, 0), __WASI_ERRNO_NOENT);
    FAILS(try_open(dir, "no/no", 0, __WASI_OFLAGS_CREAT), __WASI_ERRNO_NOENT);
    FAILS(try_open(dir, "no/", 0, __WASI_OFLAGS_CREAT), __WASI_ERRNO_ISDIR, __WASI_ERRNO_NOENT, __WASI_ERRNO_INVAL);
    FAILS(try_open(dir, "", 0, 0), __WASI_ERRNO_NOENT);
}

CASE(open_exclusively_what_exists) {
    make(dir, "file");
    FAILS(try_open(dir, "file", 0, __WASI_OFLAGS_CREAT | __WASI_OFLAGS_EXCL), __WASI_ERRNO_EXIST);
    OK(__wasi_path_symlink("nowhere", dir, "dangling"));
    FAILS(try_open(dir, "dangling", FOLLOW, __WASI_OFLAGS_CREAT | __WASI_OFLAGS_EXCL), __WASI_ERRNO_EXIST);
    FAILS(try_open(dir, "nowhere", 0, 0), __WASI_ERRNO_NOENT);
    OK(__wasi_path_unlink_file(dir, "dangling"));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(open_below_a_file) {
    __wasi_fd_t file = opened(dir, "file", __WASI_OFLAGS_CREAT, RW), none;
    FAILS(__wasi_path_open(file, 0, "foo", 0, 0, 0, 0, &none), __WASI_ERRNO_NOTDIR);
    FAILS(try_open(dir, "file/foo", 0, 0), __WASI_ERRNO_NOTDIR);
    FAILS(try_open(dir, "file/", 0, 0), __WASI_ERRNO_NOTDIR, __WASI_ERRNO_NOENT);
    FAILS(try_open(dir, "file///", 0, 0), __WASI_ERRNO_NOTDIR, __WASI_ERRNO_NOENT);
    FAILS(try_open(dir, "file", 0, __WASI_OFLAGS_DIRECTORY), __WASI_ERRNO_NOTDIR);
    OK(__wasi_fd_close(file));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(paths_of_all_kinds) {
    __wasi_fd_t fd;
    OK(__wasi_path_create_directory(dir, "dir"));
    OK(__wasi_path_create_directory(dir, "dir/nested"));
    make(dir, "dir/nested/file");
    FAILS(try_open(dir, "/dir/nested/file", 0, 0), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
    OK(try_open(dir, "dir/.//nested/../../dir/nested/../nested///./file", 0, 0));
    FAILS(raw_path_open(dir, 0, "dir/nested/file\0", 16, 0, 0, 0, 0, &fd), __WASI_ERRNO_INVAL, __WASI_ERRNO_ILSEQ,
          __WASI_ERRNO_NOENT);
    FAILS(try_open(dir, "dir/\xff", 0, 0), __WASI_ERRNO_ILSEQ);
    OK(try_open(dir, "dir/nested/", 0, 0));
    OK(try_open(dir, "dir/nested///", 0, 0));
    FAILS(try_open(dir, "dir/nested/../../../preview1/dir", 0, 0), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
    FAILS(try_open(dir, "..", 0, 0), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
    OK(__wasi_path_unlink_file(dir, "dir/nested/file"));
    OK(__wasi_path_remove_directory(dir, "dir/nested"));
    OK(__wasi_path_remove_directory(dir, "dir"));
}

CASE(links_that_are_not_followed) {
    OK(__wasi_path_create_directory(dir, "target"));
    OK(__wasi_path_symlink("target", dir, "link"));
    FAILS(try_open(dir, "link", 0, __WASI_OFLAGS_DIRECTORY), __WASI_ERRNO_LOOP, __WASI_ERRNO_NOTDIR);
    FAILS(try_open(dir, "link", 0, 0), __WASI_ERRNO_LOOP);
    OK(try_open(dir, "link", FOLLOW, __WASI_OFLAGS_DIRECTORY));
    OK(__wasi_path_remove_directory(dir, "target"));
    make(dir, "target");
    FAILS(try_open(dir, "link", 0, __WASI_OFLAGS_DIRECTORY), __WASI_ERRNO_LOOP, __WASI_ERRNO_NOTDIR);
    FAILS(try_open(dir, "link", 0, 0), __WASI_ERRNO_LOOP);
    FAILS(try_open(dir, "link", FOLLOW, __WASI_OFLAGS_DIRECTORY), __WASI_ERRNO_NOTDIR);
    OK(try_open(dir, "link", FOLLOW, 0));
    OK(__wasi_path_unlink_file(dir, "target"));
    FAILS(try_open(dir, "link", 0, __WASI_OFLAGS_DIRECTORY), __WASI_ERRNO_LOOP, __WASI_ERRNO_NOTDIR);
    FAILS(try_open(dir, "link", FOLLOW, 0), __WASI_ERRNO_NOENT);
    OK(__wasi_path_unlink_file(dir, "link"));
    OK(__wasi_path_symlink("link", dir, "link"));
    FAILS(try_open(dir, "link", FOLLOW, 0), __WASI_ERRNO_LOOP);
    OK(__wasi_path_unlink_file(dir, "link"));
}

CASE(links_that_lead_outside) {
    __wasi_fd_t below = folder(dir, "below");
    OK(__wasi_path_symlink("..", below, "up"));
    OK(__wasi_path_symlink("../outside", below, "beside"));
    OK(__wasi_path_symlink("/", below, "top"));
    make(dir, "outside");
    const char *paths[] = {"up", "up/outside", "beside", "top", "top/tmp", "up/below/up/outside"};
    for (size_t i = 0; i < LENGTH(paths); i++) {
        __wasi_filestat_t st;
        FAILS(try_open(below, paths[i], FOLLOW, 0), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
        FAILS(__wasi_path_filestat_get(below, FOLLOW, paths[i], &st), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
    }
    OK(try_open(dir, "below/up/outside", FOLLOW, 0));
    FAILS(__wasi_path_create_directory(below, "up/made"), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
    FAILS(__wasi_path_rename(below, "beside", below, "up/moved"), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
    FAILS(__wasi_path_unlink_file(below, "up/outside"), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
    OK(__wasi_path_unlink_file(below, "up"));
    OK(__wasi_path_unlink_file(below, "beside"));
    OK(__wasi_path_unlink_file(below, "top"));
    OK(__wasi_fd_close(below));
    OK(__wasi_path_unlink_file(dir, "outside"));
    OK(__wasi_path_remove_directory(dir, "below"));
}

CASE(rights_of_a_preopened_directory) {
    __wasi_fdstat_t st;
    __wasi_fd_t fd;
    OK(__wasi_fd_fdstat_get(3, &st));
    HOLDS(st.fs_filetype == __WASI_FILETYPE_DIRECTORY && st.fs_flags == 0);
    HOLDS((st.fs_rights_base & __WASI_RIGHTS_FD_FILESTAT_SET_SIZE) == 0);
    HOLDS((st.fs_rights_base & __WASI_RIGHTS_FD_SEEK) == 0);
    HOLDS(st.fs_rights_base & __WASI_RIGHTS_PATH_OPEN && st.fs_rights_inheriting & __WASI_RIGHTS_FD_WRITE);
    OK(__wasi_path_open(3, 0, ".", 0, st.fs_rights_base, st.fs_rights_inheriting, 0, &fd));
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_open(3, 0, ".", __WASI_OFLAGS_DIRECTORY, __WASI_RIGHTS_FD_READ, 0, 0, &fd));
    OK(__wasi_fd_close(fd));
    FAILS(__wasi_path_open(dir, 0, ".", __WASI_OFLAGS_DIRECTORY, __WASI_RIGHTS_FD_READ | __WASI_RIGHTS_FD_WRITE, 0, 0,
                           &fd),
          __WASI_ERRNO_ISDIR);
}

CASE(access_that_was_not_asked_for) {
    __wasi_fd_t fd;
    uint8_t byte = 1;
    __wasi_ciovec_t out = {&byte, 1};
    __wasi_iovec_t in = {&byte, 1};
    __wasi_size_t count;
    make(dir, "file");
    fd = opened(dir, "file", 0, __WASI_RIGHTS_FD_READ);
    FAILS(__wasi_fd_write(fd, &out, 1, &count), __WASI_ERRNO_BADF, __WASI_ERRNO_NOTCAPABLE);
    OK(__wasi_fd_read(fd, &in, 1, &count));
    OK(__wasi_fd_close(fd));
    fd = opened(dir, "file", 0, __WASI_RIGHTS_FD_WRITE);
    FAILS(__wasi_fd_read(fd, &in, 1, &count), __WASI_ERRNO_BADF, __WASI_ERRNO_NOTCAPABLE);
    OK(__wasi_fd_write(fd, &out, 1, &count));
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(rights_are_given_up_for_good) {
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, RW);
    __wasi_fdstat_t st;
    uint8_t byte;
    __wasi_iovec_t in = {&byte, 1};
    __wasi_size_t count;
    put(fd, "text");
    OK(__wasi_fd_fdstat_set_rights(fd, __WASI_RIGHTS_FD_SEEK | __WASI_RIGHTS_FD_TELL, 0));
    OK(__wasi_fd_fdstat_get(fd, &st));
    HOLDS(st.fs_rights_base == (__WASI_RIGHTS_FD_SEEK | __WASI_RIGHTS_FD_TELL));
    FAILS(__wasi_fd_read(fd, &in, 1, &count), __WASI_ERRNO_BADF, __WASI_ERRNO_NOTCAPABLE);
    FAILS(__wasi_fd_fdstat_set_rights(fd, st.fs_rights_base | RW, 0), __WASI_ERRNO_NOTCAPABLE);
    HOLDS(at(fd) == 4);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(truncation_needs_its_right) {
    __wasi_fd_t below = folder(dir, "below");
    __wasi_fdstat_t st;
    make(below, "file");
    OK(try_open(below, "file", 0, __WASI_OFLAGS_TRUNC));
    OK(__wasi_fd_fdstat_get(below, &st));
    st.fs_rights_inheriting &= ~__WASI_RIGHTS_FD_FILESTAT_SET_SIZE;
    OK(__wasi_fd_fdstat_set_rights(below, st.fs_rights_base, st.fs_rights_inheriting));
    OK(try_open(below, "file", 0, __WASI_OFLAGS_TRUNC));
    st.fs_rights_base &= ~__WASI_RIGHTS_PATH_FILESTAT_SET_SIZE;
    OK(__wasi_fd_fdstat_set_rights(below, st.fs_rights_base, st.fs_rights_inheriting));
    FAILS(try_open(below, "file", 0, __WASI_OFLAGS_TRUNC), __WASI_ERRNO_PERM, __WASI_ERRNO_NOTCAPABLE);
    OK(__wasi_path_unlink_file(below, "file"));
    OK(__wasi_fd_close(below));
    OK(__wasi_path_remove_directory(dir, "below"));
}

CASE(truncation_empties_and_opening_does_not) {
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, RW);
    put(fd, "some text");
    OK(__wasi_fd_close(fd));
    fd = opened(dir, "file", 0, RW);
    HOLDS(!strcmp(get(fd, 99), "some text"));
    OK(__wasi_fd_close(fd));
    fd = opened(dir, "file", __WASI_OFLAGS_CREAT | __WASI_OFLAGS_TRUNC, RW);
    HOLDS(!strcmp(get(fd, 99), ""));
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(opening_without_blocking) {
    __wasi_fd_t fd;
    OK(__wasi_path_open(dir, 0, ".", 0, 0, 0, __WASI_FDFLAGS_NONBLOCK, &fd));
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_open(dir, 0, "file", __WASI_OFLAGS_CREAT, RW, 0, __WASI_FDFLAGS_NONBLOCK, &fd));
    __wasi_fdstat_t st;
    OK(__wasi_fd_fdstat_get(fd, &st));
    HOLDS(st.fs_flags == __WASI_FDFLAGS_NONBLOCK);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

/* Reading, writing, positions */

CASE(positions_of_a_file) {
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, RW);
    __wasi_filesize_t place;
    HOLDS(at(fd) == 0);
    put(fd, "0123456789");
    HOLDS(at(fd) == 10);
    OK(__wasi_fd_seek(fd, -4, __WASI_WHENCE_CUR, &place));
    HOLDS(place == 6 && !strcmp(get(fd, 2), "67"));
    OK(__wasi_fd_seek(fd, -1, __WASI_WHENCE_END, &place));
    HOLDS(place == 9 && !strcmp(get(fd, 2), "9") && !strcmp(get(fd, 2), ""));
    OK(__wasi_fd_seek(fd, 1000, __WASI_WHENCE_SET, &place));
    HOLDS(place == 1000 && at(fd) == 1000);
    FAILS(__wasi_fd_seek(fd, -2000, __WASI_WHENCE_CUR, &place), __WASI_ERRNO_INVAL);
    FAILS(__wasi_fd_seek(fd, -1, __WASI_WHENCE_SET, &place), __WASI_ERRNO_INVAL);
    HOLDS(at(fd) == 1000);
    put(fd, "x");
    OK(__wasi_fd_close(fd));
    HOLDS(stat_at(dir, "file", 0).size == 1001);
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(reading_and_writing_at_a_place) {
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, RW);
    char one[4] = {0}, two[4] = {0};
    __wasi_ciovec_t out[] = {{(uint8_t *)"ab", 2}, {(uint8_t *)"cd", 2}};
    __wasi_iovec_t in[] = {{(uint8_t *)one, 3}, {(uint8_t *)two, 3}};
    __wasi_size_t count;
    OK(__wasi_fd_pwrite(fd, out, 2, 1, &count));
    HOLDS(count == 4 && at(fd) == 0);
    OK(__wasi_fd_pread(fd, in, 2, 2, &count));
    HOLDS(count == 3 && !strcmp(one, "bcd") && !*two && at(fd) == 0);
    OK(__wasi_fd_pread(fd, in, 2, 0, &count));
    HOLDS(count == 5 && !memcmp(one, "\0ab", 3) && !strcmp(two, "cd"));
    OK(__wasi_fd_pread(fd, in, 2, 100, &count));
    HOLDS(count == 0);
    OK(__wasi_fd_pread(fd, in, 0, 0, &count));
    HOLDS(count == 0);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(writing_is_seen_at_once_by_other_descriptors) {
    __wasi_fd_t writer = opened(dir, "file", __WASI_OFLAGS_CREAT, RW), reader = opened(dir, "file", 0, RW);
    put(writer, "now");
    HOLDS(!strcmp(get(reader, 9), "now"));
    put(writer, " and then");
    HOLDS(!strcmp(get(reader, 9), " and then"));
    OK(__wasi_fd_close(writer));
    OK(__wasi_fd_close(reader));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(appending_by_flag) {
    __wasi_fd_t fd;
    __wasi_rights_t rights = RW | __WASI_RIGHTS_FD_FDSTAT_SET_FLAGS;
    OK(__wasi_path_open(dir, 0, "file", __WASI_OFLAGS_CREAT, rights, 0, __WASI_FDFLAGS_APPEND, &fd));
    put(fd, "aaaa");
    rewind_to(fd, 0);
    HOLDS(!strcmp(get(fd, 4), "aaaa"));
    rewind_to(fd, 0);
    put(fd, "bbbb");
    HOLDS(at(fd) == 8);
    OK(__wasi_fd_fdstat_set_flags(fd, 0));
    rewind_to(fd, 0);
    put(fd, "cccc");
    OK(__wasi_fd_fdstat_set_flags(fd, __WASI_FDFLAGS_APPEND));
    put(fd, "dd");
    rewind_to(fd, 0);
    HOLDS(!strcmp(get(fd, 99), "ccccbbbbdd"));
    __wasi_ciovec_t out = {(uint8_t *)"e", 1};
    __wasi_size_t count;
    OK(__wasi_fd_pwrite(fd, &out, 1, 0, &count)); /* POSIX says at 0, Linux at the end; nobody moves */
    HOLDS(at(fd) == 10);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(sizes_allocation_and_advice) {
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, ALL);
    __wasi_filestat_t st;
    OK(__wasi_fd_allocate(fd, 0, 100));
    OK(__wasi_fd_filestat_get(fd, &st));
    HOLDS(st.size == 100 && st.filetype == __WASI_FILETYPE_REGULAR_FILE && st.nlink == 1);
    OK(__wasi_fd_allocate(fd, 10, 10));
    OK(__wasi_fd_filestat_get(fd, &st));
    HOLDS(st.size == 100);
    OK(__wasi_fd_allocate(fd, 90, 20));
    OK(__wasi_fd_filestat_get(fd, &st));
    HOLDS(st.size == 110);
    OK(__wasi_fd_filestat_set_size(fd, 5));
    OK(__wasi_fd_filestat_get(fd, &st));
    HOLDS(st.size == 5);
    OK(__wasi_fd_advise(fd, 0, 0, __WASI_ADVICE_DONTNEED));
    OK(__wasi_fd_advise(fd, 5, 100, __WASI_ADVICE_SEQUENTIAL));
    OK(__wasi_fd_sync(fd));
    OK(__wasi_fd_datasync(fd));
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(file_lives_on_without_a_name) {
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, ALL);
    OK(__wasi_path_unlink_file(dir, "file"));
    put(fd, "still here");
    rewind_to(fd, 0);
    HOLDS(!strcmp(get(fd, 99), "still here"));
    make(dir, "file");
    HOLDS(!strcmp(get(fd, 99), ""));
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
    __wasi_fd_t gone = folder(dir, "gone"), none;
    OK(__wasi_path_remove_directory(dir, "gone"));
    FAILS(__wasi_path_open(gone, 0, "file", __WASI_OFLAGS_CREAT, RW, 0, 0, &none), __WASI_ERRNO_NOENT);
    OK(__wasi_fd_close(gone));
}

CASE(directories_have_no_data) {
    __wasi_iovec_t in = {(uint8_t *)&in, sizeof in};
    __wasi_ciovec_t out = {(uint8_t *)"x", 1};
    __wasi_size_t count;
    __wasi_filesize_t place;
    __wasi_filestat_t st;
#define NO_DATA(call) FAILS(call, __WASI_ERRNO_ISDIR, __WASI_ERRNO_BADF, __WASI_ERRNO_NOTCAPABLE)
    NO_DATA(__wasi_fd_read(dir, &in, 1, &count));
    NO_DATA(__wasi_fd_pread(dir, &in, 1, 0, &count));
    NO_DATA(__wasi_fd_write(dir, &out, 1, &count));
    NO_DATA(__wasi_fd_pwrite(dir, &out, 1, 0, &count));
    NO_DATA(__wasi_fd_seek(dir, 0, __WASI_WHENCE_CUR, &place));
    NO_DATA(__wasi_fd_seek(dir, 0, __WASI_WHENCE_SET, &place));
    NO_DATA(__wasi_fd_seek(dir, 0, __WASI_WHENCE_END, &place));
    NO_DATA(__wasi_fd_tell(dir, &place));
    NO_DATA(__wasi_fd_allocate(dir, 0, 1));
    NO_DATA(__wasi_fd_filestat_set_size(dir, 0));
    OK(__wasi_fd_filestat_get(dir, &st));
    HOLDS(st.filetype == __WASI_FILETYPE_DIRECTORY);
    OK(__wasi_fd_sync(dir));
}

/* Descriptors */

CASE(renumbering_takes_the_place_of_another) {
    __wasi_fd_t one = opened(dir, "one", __WASI_OFLAGS_CREAT, RW), two = opened(dir, "two", __WASI_OFLAGS_CREAT, RW);
    __wasi_fdstat_t st;
    put(one, "of one");
    OK(__wasi_fd_renumber(one, two));
    FAILS(__wasi_fd_close(one), __WASI_ERRNO_BADF);
    FAILS(__wasi_fd_renumber(one, two), __WASI_ERRNO_BADF);
    FAILS(__wasi_fd_renumber(two, 9999), __WASI_ERRNO_BADF);
    HOLDS(at(two) == 6);
    rewind_to(two, 0);
    HOLDS(!strcmp(get(two, 99), "of one"));
    OK(__wasi_fd_renumber(two, two));
    OK(__wasi_fd_fdstat_get(two, &st));
    OK(__wasi_fd_close(two));
    HOLDS(opened(dir, "one", 0, RW) == one);
    OK(__wasi_fd_close(one));
    OK(__wasi_path_unlink_file(dir, "one"));
    OK(__wasi_path_unlink_file(dir, "two"));
}

CASE(numbers_are_reused) {
    __wasi_fd_t first = opened(dir, ".", 0, 0), fd;
    OK(__wasi_fd_close(first));
    for (int i = 0; i < 50; i++) {
        OK(__wasi_path_open(dir, 0, ".", 0, 0, 0, 0, &fd));
        HOLDS(fd == first);
        OK(__wasi_fd_close(fd));
    }
    FAILS(__wasi_fd_close(first), __WASI_ERRNO_BADF);
}

CASE(names_of_preopened_directories) {
    __wasi_prestat_t pre;
    uint8_t name[8] = {0};
    OK(__wasi_fd_prestat_get(3, &pre));
    HOLDS(pre.tag == __WASI_PREOPENTYPE_DIR && pre.u.dir.pr_name_len == 1);
    FAILS(__wasi_fd_prestat_dir_name(3, name, 0), __WASI_ERRNO_INVAL, __WASI_ERRNO_NAMETOOLONG);
    OK(__wasi_fd_prestat_dir_name(3, name, sizeof name));
    HOLDS(name[0] == '/');
    FAILS(__wasi_fd_prestat_get(dir, &pre), __WASI_ERRNO_BADF);
    FAILS(__wasi_fd_prestat_get(1, &pre), __WASI_ERRNO_BADF);
}

CASE(sockets_are_refused) {
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, RW);
    __wasi_size_t count;
    __wasi_roflags_t flags;
    __wasi_iovec_t in = {(uint8_t *)&in, 1};
    __wasi_ciovec_t out = {(uint8_t *)"x", 1};
    FAILS(__wasi_sock_shutdown(fd, __WASI_SDFLAGS_RD), __WASI_ERRNO_NOTSOCK, __WASI_ERRNO_NOTCAPABLE);
    FAILS(__wasi_sock_shutdown(9999, __WASI_SDFLAGS_RD), __WASI_ERRNO_BADF);
    FAILS(__wasi_sock_recv(fd, &in, 1, 0, &count, &flags), __WASI_ERRNO_NOTSOCK);
    FAILS(__wasi_sock_send(fd, &out, 1, 0, &count), __WASI_ERRNO_NOTSOCK);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

/* Names */

static size_t listed(__wasi_fd_t dir, __wasi_dircookie_t cookie, size_t room, __wasi_dirent_t *last, char *name) {
    static uint8_t buffer[4096];
    size_t count = 0, size;
    OK(__wasi_fd_readdir(dir, buffer, room, cookie, &size));
    HOLDS(size <= room);
    for (size_t place = 0; place + sizeof *last <= size; count++) {
        __wasi_dirent_t entry;
        memcpy(&entry, buffer + place, sizeof entry);
        place += sizeof entry;
        if (place + entry.d_namlen > size) break;
        *last = entry;
        memcpy(name, buffer + place, entry.d_namlen);
        name[entry.d_namlen] = 0;
        place += entry.d_namlen;
        if (!strcmp(name, ".")) {
            __wasi_filestat_t st;
            OK(__wasi_fd_filestat_get(dir, &st));
            HOLDS(st.ino == entry.d_ino && entry.d_type == __WASI_FILETYPE_DIRECTORY);
        }
    }
    return count;
}

CASE(listing_of_few_and_of_many) {
    __wasi_dirent_t last;
    char name[256];
    HOLDS(listed(dir, 0, 256, &last, name) == 2);
    make(dir, "file");
    HOLDS(listed(dir, 0, 256, &last, name) == 3);
    HOLDS(!strcmp(name, "file") && last.d_type == __WASI_FILETYPE_REGULAR_FILE);
    HOLDS(last.d_ino != 0); /* no more: not every tree knows its files by the same number from both sides */
    HOLDS(listed(dir, last.d_next, 256, &last, name) == 0);
    OK(__wasi_path_unlink_file(dir, "file"));
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "file.%d", i);
        make(dir, name);
    }
    size_t total = 0, part;
    __wasi_dircookie_t cookie = 0;
    while ((part = listed(dir, cookie, 256, &last, name))) {
        total += part;
        cookie = last.d_next;
    }
    HOLDS(total == 302);
    for (int i = 0; i < 300; i++) {
        snprintf(name, sizeof name, "file.%d", i);
        OK(__wasi_path_unlink_file(dir, name));
    }
    HOLDS(listed(dir, 0, 256, &last, name) == 2);
    uint8_t none[1];
    __wasi_size_t size;
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, ALL);
    FAILS(__wasi_fd_readdir(fd, none, 1, 0, &size), __WASI_ERRNO_NOTDIR, __WASI_ERRNO_BADF, __WASI_ERRNO_NOTCAPABLE);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(hard_links) {
    make(dir, "file");
    OK(__wasi_path_link(dir, 0, "file", dir, "link"));
    __wasi_filestat_t one = stat_at(dir, "file", 0), two = stat_at(dir, "link", 0);
    HOLDS(one.ino == two.ino && one.dev == two.dev && one.nlink == 2);
    OK(__wasi_path_unlink_file(dir, "link"));
    __wasi_fd_t below = folder(dir, "below");
    OK(__wasi_path_link(dir, 0, "file", below, "link"));
    HOLDS(stat_at(below, "link", 0).ino == one.ino);
    OK(__wasi_path_unlink_file(below, "link"));
    OK(__wasi_fd_close(below));
    FAILS(__wasi_path_link(dir, 0, "file", dir, "file"), __WASI_ERRNO_EXIST);
    FAILS(__wasi_path_link(dir, 0, "file", dir, "below"), __WASI_ERRNO_EXIST);
    FAILS(__wasi_path_link(dir, 0, "below", dir, "link"), __WASI_ERRNO_PERM, __WASI_ERRNO_ACCES);
    FAILS(__wasi_path_link(dir, 0, "file", dir, "link/"), __WASI_ERRNO_NOENT);
    FAILS(__wasi_path_link(dir, 0, "file/", dir, "link"), __WASI_ERRNO_NOTDIR);
    FAILS(__wasi_path_link(dir, 0, "no", dir, "link"), __WASI_ERRNO_NOENT);
    OK(__wasi_path_symlink("target", dir, "symlink"));
    OK(__wasi_path_link(dir, 0, "symlink", dir, "link"));
    HOLDS(stat_at(dir, "link", 0).filetype == __WASI_FILETYPE_SYMBOLIC_LINK);
    FAILS(__wasi_path_link(dir, 0, "file", dir, "symlink"), __WASI_ERRNO_EXIST);
    FAILS(__wasi_path_link(dir, FOLLOW, "symlink", dir, "other"), __WASI_ERRNO_INVAL, __WASI_ERRNO_NOENT);
    OK(__wasi_path_unlink_file(dir, "symlink"));
    OK(__wasi_path_unlink_file(dir, "link"));
    OK(__wasi_path_remove_directory(dir, "below"));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(symbolic_links) {
    uint8_t text[16];
    __wasi_size_t count = 99;
    OK(__wasi_path_symlink("the target", dir, "link"));
    OK(__wasi_path_readlink(dir, "link", text, sizeof text, &count));
    HOLDS(count == 10 && !memcmp(text, "the target", 10));
    OK(__wasi_path_readlink(dir, "link", text, 3, &count));
    HOLDS(count == 3);
    FAILS(__wasi_path_symlink("x", dir, "link"), __WASI_ERRNO_EXIST);
    OK(__wasi_path_unlink_file(dir, "link"));
    FAILS(__wasi_path_symlink("source", dir, "target/"), __WASI_ERRNO_NOENT);
    FAILS(__wasi_path_symlink("", dir, "target"), __WASI_ERRNO_NOENT);
    OK(__wasi_path_create_directory(dir, "target"));
    FAILS(__wasi_path_symlink("source", dir, "target/"), __WASI_ERRNO_EXIST);
    FAILS(__wasi_path_symlink("source", dir, "target"), __WASI_ERRNO_EXIST);
    FAILS(__wasi_path_readlink(dir, "target", text, sizeof text, &count), __WASI_ERRNO_INVAL);
    OK(__wasi_path_remove_directory(dir, "target"));
    make(dir, "target");
    FAILS(__wasi_path_symlink("source", dir, "target/"), __WASI_ERRNO_NOTDIR, __WASI_ERRNO_EXIST);
    FAILS(__wasi_path_symlink("source", dir, "target"), __WASI_ERRNO_EXIST);
    OK(__wasi_path_unlink_file(dir, "target"));
}

CASE(renaming) {
    OK(__wasi_path_create_directory(dir, "source"));
    OK(__wasi_path_rename(dir, "source", dir, "target"));
    FAILS(try_open(dir, "source", 0, __WASI_OFLAGS_DIRECTORY), __WASI_ERRNO_NOENT);
    OK(try_open(dir, "target", 0, __WASI_OFLAGS_DIRECTORY));
    OK(__wasi_path_create_directory(dir, "source"));
    OK(__wasi_path_rename(dir, "source", dir, "target"));
    OK(__wasi_path_create_directory(dir, "source"));
    make(dir, "target/file");
    FAILS(__wasi_path_rename(dir, "source", dir, "target"), __WASI_ERRNO_NOTEMPTY);
    FAILS(__wasi_path_rename(dir, "source", dir, "target/file"), __WASI_ERRNO_NOTDIR);
    FAILS(__wasi_path_rename(dir, "target", dir, "target/below"), __WASI_ERRNO_INVAL);
    OK(__wasi_path_rename(dir, "target/file", dir, "file"));
    FAILS(__wasi_path_rename(dir, "file", dir, "source"), __WASI_ERRNO_ISDIR);
    FAILS(__wasi_path_rename(dir, "file/", dir, "other"), __WASI_ERRNO_NOTDIR);
    FAILS(__wasi_path_rename(dir, "file", dir, "other/"), __WASI_ERRNO_NOTDIR, __WASI_ERRNO_NOENT);
    FAILS(__wasi_path_rename(dir, "no", dir, "other"), __WASI_ERRNO_NOENT);
    make(dir, "second");
    OK(__wasi_path_rename(dir, "file", dir, "second"));
    OK(__wasi_path_rename(dir, "second", dir, "second"));
    FAILS(try_open(dir, "file", 0, 0), __WASI_ERRNO_NOENT);
    OK(__wasi_path_unlink_file(dir, "second"));
    OK(__wasi_path_remove_directory(dir, "target"));
    OK(__wasi_path_rename(dir, "source/", dir, "target"));
    OK(__wasi_path_rename(dir, "target", dir, "source/"));
    OK(__wasi_path_rename(dir, "source/", dir, "target/"));
    OK(__wasi_path_remove_directory(dir, "target"));
}

CASE(removal) {
    OK(__wasi_path_create_directory(dir, "dir"));
    FAILS(__wasi_path_create_directory(dir, "dir"), __WASI_ERRNO_EXIST);
    FAILS(__wasi_path_unlink_file(dir, "dir"), __WASI_ERRNO_ISDIR, __WASI_ERRNO_PERM);
    FAILS(__wasi_path_unlink_file(dir, "dir/"), __WASI_ERRNO_ISDIR, __WASI_ERRNO_PERM);
    make(dir, "dir/file");
    FAILS(__wasi_path_remove_directory(dir, "dir"), __WASI_ERRNO_NOTEMPTY);
    FAILS(__wasi_path_unlink_file(dir, "dir/file/"), __WASI_ERRNO_NOTDIR);
    FAILS(__wasi_path_remove_directory(dir, "dir/file"), __WASI_ERRNO_NOTDIR);
    FAILS(__wasi_path_remove_directory(dir, "dir/file/"), __WASI_ERRNO_NOTDIR);
    OK(__wasi_path_unlink_file(dir, "dir/file"));
    OK(__wasi_path_remove_directory(dir, "dir/"));
    FAILS(__wasi_path_remove_directory(dir, "dir"), __WASI_ERRNO_NOENT);
    FAILS(__wasi_path_unlink_file(dir, "dir"), __WASI_ERRNO_NOENT);
    OK(__wasi_path_create_directory(dir, "dir/"));
    OK(__wasi_path_remove_directory(dir, "dir"));
}

/* Attributes */

CASE(times_of_a_file_and_of_a_link) {
    make(dir, "file");
    OK(__wasi_path_symlink("file", dir, "link"));
    __wasi_filestat_t file = stat_at(dir, "file", 0), link = stat_at(dir, "link", 0);
    HOLDS(file.size == 0 && link.filetype == __WASI_FILETYPE_SYMBOLIC_LINK);
    OK(__wasi_path_filestat_set_times(dir, 0, "link", 0, link.mtim - 200, __WASI_FSTFLAGS_MTIM));
    HOLDS(stat_at(dir, "link", 0).mtim == link.mtim - 200);
    HOLDS(stat_at(dir, "file", 0).mtim == file.mtim && stat_at(dir, "link", FOLLOW).mtim == file.mtim);
    OK(__wasi_path_filestat_set_times(dir, FOLLOW, "link", 7000000005ull, 8, __WASI_FSTFLAGS_ATIM));
    HOLDS(stat_at(dir, "file", 0).atim == 7000000005ull && stat_at(dir, "file", 0).mtim == file.mtim);
    __wasi_fd_t fd = opened(dir, "file", 0, ALL);
    OK(__wasi_fd_filestat_set_times(fd, 0, 123, __WASI_FSTFLAGS_MTIM));
    HOLDS(stat_at(dir, "file", 0).mtim == 123 && stat_at(dir, "file", 0).atim == 7000000005ull);
    OK(__wasi_fd_filestat_set_times(fd, 1, 1, __WASI_FSTFLAGS_MTIM_NOW));
    HOLDS(stat_at(dir, "file", 0).mtim >= file.mtim - 1000000000ull);
    FAILS(__wasi_fd_filestat_set_times(fd, 1, 1, __WASI_FSTFLAGS_MTIM | __WASI_FSTFLAGS_MTIM_NOW), __WASI_ERRNO_INVAL);
    FAILS(__wasi_path_filestat_set_times(dir, 0, "file", 1, 1, __WASI_FSTFLAGS_ATIM | __WASI_FSTFLAGS_ATIM_NOW),
          __WASI_ERRNO_INVAL);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "link"));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(files_are_told_apart) {
    make(dir, "one");
    make(dir, "two");
    __wasi_filestat_t one = stat_at(dir, "one", 0), two = stat_at(dir, "two", 0), again;
    HOLDS(one.ino != two.ino && one.dev == two.dev && one.ino != 0);
    __wasi_fd_t fd = opened(dir, "one", 0, ALL);
    OK(__wasi_fd_filestat_get(fd, &again));
    HOLDS(again.ino == one.ino && again.dev == one.dev && again.mtim == one.mtim && again.nlink == one.nlink);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "one"));
    OK(__wasi_path_unlink_file(dir, "two"));
}

/* Clocks, chance, waiting */

CASE(clocks) {
    for (__wasi_clockid_t clock = 0; clock < 4; clock++) {
        __wasi_timestamp_t resolution, one, two;
        OK(__wasi_clock_res_get(clock, &resolution));
        HOLDS(resolution > 0 && resolution <= 1000000000ull);
        OK(__wasi_clock_time_get(clock, 1, &one));
        OK(__wasi_clock_time_get(clock, 1, &two));
        HOLDS(clock == __WASI_CLOCKID_REALTIME || one <= two);
    }
    __wasi_timestamp_t none;
    FAILS(__wasi_clock_time_get(9, 1, &none), __WASI_ERRNO_INVAL);
    OK(__wasi_sched_yield());
}

CASE(chance) {
    static uint8_t one[1 << 16], two[1 << 16];
    OK(__wasi_random_get(one, sizeof one));
    OK(__wasi_random_get(two, sizeof two));
    OK(__wasi_random_get(two, 0));
    int seen[256] = {0};
    for (size_t i = 0; i < sizeof one; i++) seen[one[i]]++;
    for (int i = 0; i < 256; i++) HOLDS(seen[i] > 64);
    HOLDS(memcmp(one, two, sizeof one));
}

static __wasi_subscription_t clock_of(__wasi_userdata_t userdata, __wasi_clockid_t id, __wasi_timestamp_t timeout) {
    __wasi_subscription_t found = {.userdata = userdata, .u = {.tag = __WASI_EVENTTYPE_CLOCK}};
    found.u.u.clock = (__wasi_subscription_clock_t){.id = id, .timeout = timeout};
    return found;
}

static __wasi_subscription_t ready_of(__wasi_userdata_t userdata, __wasi_eventtype_t type, __wasi_fd_t fd) {
    __wasi_subscription_t found = {.userdata = userdata, .u = {.tag = type}};
    found.u.u.fd_read.file_descriptor = fd;
    return found;
}

CASE(waiting_for_clocks) {
    __wasi_subscription_t both[] = {clock_of(1, __WASI_CLOCKID_MONOTONIC, 3600000000000ull),
                                    clock_of(2, __WASI_CLOCKID_REALTIME, 20000000)};
    __wasi_event_t events[2];
    __wasi_timestamp_t before, after;
    __wasi_size_t count;
    OK(__wasi_clock_time_get(__WASI_CLOCKID_MONOTONIC, 1, &before));
    OK(__wasi_poll_oneoff(both, events, 2, &count));
    OK(__wasi_clock_time_get(__WASI_CLOCKID_MONOTONIC, 1, &after));
    HOLDS(count == 1 && events[0].userdata == 2 && events[0].type == __WASI_EVENTTYPE_CLOCK && !events[0].error);
    HOLDS(after - before >= 15000000 && after - before < 1800000000000ull);
    both[0] = clock_of(3, __WASI_CLOCKID_MONOTONIC, before);
    both[0].u.u.clock.flags = __WASI_SUBCLOCKFLAGS_SUBSCRIPTION_CLOCK_ABSTIME;
    OK(__wasi_poll_oneoff(both, events, 1, &count));
    HOLDS(count == 1 && events[0].userdata == 3);
    FAILS(__wasi_poll_oneoff(both, events, 0, &count), __WASI_ERRNO_INVAL);
}

CASE(waiting_for_descriptors) {
    __wasi_fd_t fd = opened(dir, "file", __WASI_OFLAGS_CREAT, ALL);
    put(fd, "12345");
    rewind_to(fd, 1);
    __wasi_subscription_t all[] = {
        ready_of(1, __WASI_EVENTTYPE_FD_WRITE, 1),    ready_of(2, __WASI_EVENTTYPE_FD_READ, fd),
        ready_of(3, __WASI_EVENTTYPE_FD_READ, 9999),  ready_of(4, __WASI_EVENTTYPE_FD_WRITE, 2),
        clock_of(5, __WASI_CLOCKID_MONOTONIC, 3600000000000ull),
    };
    __wasi_event_t events[LENGTH(all)];
    __wasi_size_t count;
    int seen[6] = {0};
    for (int rounds = 0; rounds < 9 && !(seen[1] && seen[2] && seen[3] && seen[4]); rounds++) {
        OK(__wasi_poll_oneoff(all, events, LENGTH(all), &count));
        for (size_t i = 0; i < count; i++) {
            seen[events[i].userdata]++;
            HOLDS(events[i].error == (events[i].userdata == 3 ? __WASI_ERRNO_BADF : 0));
            if (events[i].userdata == 2) HOLDS(events[i].fd_readwrite.nbytes == 4);
        }
    }
    HOLDS(seen[1] && seen[2] && seen[3] && seen[4] && !seen[5]);
    OK(__wasi_fd_close(fd));
    OK(__wasi_path_unlink_file(dir, "file"));
}

CASE(standard_streams) {
    for (__wasi_fd_t fd = 0; fd < 3; fd++) {
        __wasi_fdstat_t st;
        __wasi_filestat_t attributes;
        OK(__wasi_fd_fdstat_get(fd, &st));
        HOLDS(st.fs_filetype != __WASI_FILETYPE_DIRECTORY && st.fs_rights_base & __WASI_RIGHTS_POLL_FD_READWRITE);
        HOLDS(st.fs_rights_base & (fd ? __WASI_RIGHTS_FD_WRITE : __WASI_RIGHTS_FD_READ));
        OK(__wasi_fd_filestat_get(fd, &attributes));
        HOLDS(!isatty(fd));
    }
}

static const struct {
    const char *name;
    void (*run)(__wasi_fd_t);
} cases[] = {
#define RUN(name) {#name, name}
    RUN(open_of_what_is_missing), RUN(open_exclusively_what_exists), RUN(open_below_a_file), RUN(paths_of_all_kinds),
    RUN(links_that_are_not_followed), RUN(links_that_lead_outside), RUN(rights_of_a_preopened_directory),
    RUN(access_that_was_not_asked_for), RUN(rights_are_given_up_for_good), RUN(truncation_needs_its_right),
    RUN(truncation_empties_and_opening_does_not), RUN(opening_without_blocking), RUN(positions_of_a_file),
    RUN(reading_and_writing_at_a_place), RUN(writing_is_seen_at_once_by_other_descriptors), RUN(appending_by_flag),
    RUN(sizes_allocation_and_advice), RUN(file_lives_on_without_a_name), RUN(directories_have_no_data),
    RUN(renumbering_takes_the_place_of_another), RUN(numbers_are_reused), RUN(names_of_preopened_directories),
    RUN(sockets_are_refused), RUN(listing_of_few_and_of_many), RUN(hard_links), RUN(symbolic_links), RUN(renaming),
    RUN(removal), RUN(times_of_a_file_and_of_a_link), RUN(files_are_told_apart), RUN(clocks), RUN(chance),
    RUN(waiting_for_clocks), RUN(waiting_for_descriptors), RUN(standard_streams),
};

int main(int argc, char **argv) {
    if (argc != 2 || *argv[1] != '/') return 2;
    for (size_t i = 0; i < LENGTH(cases); i++) {
        char path[512];
        int before = wrong;
        now = cases[i].name;
        snprintf(path, sizeof path, "%s/%s", argv[1] + 1, now);
        __wasi_fd_t dir = folder(3, path);
        cases[i].run(dir);
        OK(__wasi_fd_close(dir));
        OK(__wasi_path_remove_directory(3, path));
        if (wrong == before) printf("ok %s\n", now);
    }
    return wrong > 0;
}
