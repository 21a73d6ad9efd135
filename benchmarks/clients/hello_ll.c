/* The same small filesystem in C, as a peer to compare with: libfuse's low-level API, one thread, all in memory.
 *
 *     hello_ll -f MOUNTPOINT
 *
 * The root holds f00..f99 (4 KiB each) and takes new regular files; names and attributes are never cached, as in our
 * memory trees.
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILES = 100, SIZE = 4096, BUCKETS = 1024, INODES = 1 << 16 };

struct file {
    struct file *next;
    fuse_ino_t ino;
    unsigned long lookups;
    int linked;
    char name[32];
};

static struct file *buckets[BUCKETS], *inodes[INODES];
static fuse_ino_t last_ino = FUSE_ROOT_ID;
static char content[SIZE];

static unsigned hash(const char *name)
{
    unsigned h = 5381;
    while (*name)
        h = h * 33 + (unsigned char)*name++;
    return h % BUCKETS;
}

static struct file *find(const char *name)
{
    struct file *file = buckets[hash(name)];
    while (file && strcmp(file->name, name))
        file = file->next;
    return file;
}

static struct file *make(const char *name)
{
    struct file *file = calloc(1, sizeof *file);
    unsigned bucket = hash(name);
    do
        last_ino++;
    while (last_ino <= FUSE_ROOT_ID || inodes[last_ino % INODES]);
    file->ino = last_ino;
    file->linked = 1;
    snprintf(file->name, sizeof file->name, "%s", name);
    file->next = buckets[bucket];
    buckets[bucket] = file;
    inodes[file->ino % INODES] = file;
    return file;
}

static void let_go(struct file *file)
{
    if (file->linked || file->lookups)
        return;
    inodes[file->ino % INODES] = NULL;
    free(file);
}

static void attributes(fuse_ino_t ino, struct stat *st)
{
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_mode = ino == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0644;
    st->st_nlink = 1;
    st->st_size = ino == FUSE_ROOT_ID ? 0 : SIZE;
}

static void entry_of(struct file *file, struct fuse_entry_param *entry)
{
    memset(entry, 0, sizeof *entry);
    entry->ino = file->ino;
    attributes(file->ino, &entry->attr);
    file->lookups++;
}

static void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry;
    struct file *file = parent == FUSE_ROOT_ID ? find(name) : NULL;
    if (!file) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    entry_of(file, &entry);
    fuse_reply_entry(req, &entry);
}

static void on_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
    struct file *file = inodes[ino % INODES];
    if (file) {
        file->lookups -= count;
        let_go(file);
    }
    fuse_reply_none(req);
}

static void on_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
    struct stat st;
    (void)info;
    attributes(ino, &st);
    fuse_reply_attr(req, &st, 0);
}

static void on_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *info)
{
    (void)ino;
    fuse_reply_open(req, info);
}

static void on_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *info)
{
    (void)ino, (void)info;
    if (offset >= SIZE)
        size = 0;
    else if (offset + size > SIZE)
        size = SIZE - offset;
    fuse_reply_buf(req, content + offset, size);
}

static void on_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *info)
{
    struct fuse_entry_param entry;
    (void)mode;
    if (parent != FUSE_ROOT_ID || find(name)) {
        fuse_reply_err(req, EEXIST);
        return;
    }
    entry_of(make(name), &entry);
    fuse_reply_create(req, &entry, info);
}

static void on_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct file **link = &buckets[hash(name)], *file;
    (void)parent;
    while (*link && strcmp((*link)->name, name))
        link = &(*link)->next;
    if (!(file = *link)) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    *link = file->next;
    file->linked = 0;
    let_go(file);
    fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = on_lookup,
    .forget = on_forget,
    .getattr = on_getattr,
    .open = on_open,
    .read = on_read,
    .create = on_create,
    .unlink = on_unlink,
};

int main(int argc, char **argv)
{
    struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
    struct fuse_cmdline_opts options;
    struct fuse_session *session;
    int failed = 1;

    if (fuse_parse_cmdline(&args, &options) || !options.mountpoint)
        return 2;
    memset(content, 'x', SIZE);
    for (int i = 0; i < FILES; i++) {
        char name[8];
        snprintf(name, sizeof name, "f%02d", i);
        make(name);
    }
    session = fuse_session_new(&args, &operations, sizeof operations, NULL);
    if (session && !fuse_set_signal_handlers(session)) {
        if (!fuse_session_mount(session, options.mountpoint)) {
            failed = fuse_session_loop(session) < 0;
            fuse_session_unmount(session);
        }
        fuse_remove_signal_handlers(session);
    }
    if (session)
        fuse_session_destroy(session);
    free(options.mountpoint);
    fuse_opt_free_args(&args);
    return failed;
}
