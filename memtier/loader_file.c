/* The data files the loader has open: at most so many, the least recently used closed first, each
 * registered with the ring where there is one. Loader thread only. */
#include "memtier/loader.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static void close_file(struct load_files *t, struct load_file *f)
{
    assert(f->inflight == 0);
    if (f->fd < 0)
        return;
    if (f->slot >= 0) {
        if (f->registered)
            (void)t->io->ops->attach_file(t->io, (uint32_t)f->slot, -1);
        t->open[f->slot] = NULL;
    }
    close(f->fd);
    f->fd = -1;
    f->slot = -1;
    f->reopen = f->registered = false;
}

static bool close_least_used(struct load_files *t)
{
    struct load_file *least = NULL;
    for (size_t i = 0; i < LOAD_FILES_MAX; i++) {
        struct load_file *f = t->open[i];
        if (f != NULL && f->inflight == 0 && (least == NULL || f->used_at < least->used_at))
            least = f;
    }
    if (least == NULL)
        return false;
    close_file(t, least);
    return true;
}

static int32_t free_slot(struct load_files *t)
{
    for (int attempt = 0; attempt < 2; attempt++) {
        for (int32_t i = 0; i < LOAD_FILES_MAX; i++) {
            if (t->open[i] == NULL)
                return i;
        }
        if (!close_least_used(t))
            break;
    }
    return -1;
}

static int open_flags(struct load_files *t, struct load_file *f, bool direct)
{
    int flags = (f->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | (direct ? O_DIRECT : 0);
    int fd = open(f->path, flags);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE) && close_least_used(t))
        fd = open(f->path, flags);
    return fd;
}

static int open_file(struct load_files *t, struct load_file *f, const char **ret_text)
{
    struct stat st;
    *ret_text = "cannot open";
    f->direct = t->direct && !f->direct_refused;
    f->fd = open_flags(t, f, f->direct);
    if (f->fd < 0 && errno == EINVAL && f->direct) {
        /* This file lies where direct reads are refused, whatever the probe found elsewhere. */
        f->direct_refused = true;
        f->direct = false;
        f->fd = open_flags(t, f, false);
    }
    if (f->fd < 0)
        return errno;
    f->slot = -1;
    f->reopen = false;
    int why = fstat(f->fd, &st) != 0 ? errno : 0;
    if (why == 0 && (uint64_t)st.st_size < f->bytes) {
        *ret_text = "is shorter than the index says:";
        why = ENODATA;
    }
    if (why != 0) {
        close_file(t, f);
        return why;
    }
    if (!f->direct)
        (void)posix_fadvise(f->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    f->slot = free_slot(t);
    if (f->slot >= 0) {
        t->open[f->slot] = f;
        /* If it cannot be registered, reads name the descriptor itself. */
        f->registered = t->io->ops->attach_file != NULL &&
                        t->io->ops->attach_file(t->io, (uint32_t)f->slot, f->fd) == 0;
    }
    return 0;
}

int load_file_ready(struct load_files *t, struct load_file *f, const char **ret_text)
{
    f->used_at = ++t->ticks;
    if (f->fd >= 0 && f->reopen && f->inflight == 0)
        close_file(t, f);
    return f->fd >= 0 ? 0 : open_file(t, f, ret_text);
}

void load_files_close(struct load_files *t)
{
    for (size_t i = 0; i < LOAD_FILES_MAX; i++) {
        if (t->open[i] != NULL)
            close_file(t, t->open[i]);
    }
}
