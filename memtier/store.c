/* The store as a directory: opening, the lock, look-up, reading and checking. Writing is in
 * store_write.c, the index as a value in store_index.c. */
#include "memtier/store.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* A reader takes no lock, so gc may remove a file between its look at the index and at the data. */
#define OPEN_ATTEMPTS 5
#define VERIFY_BLOCK (4 * BASE_MIB)

const char *memtier_tier_name(enum memtier_tier t)
{
    static const char *const names[] = {"none", "hbm", "ddr", "nvme"};
    return (unsigned)t < BASE_COUNT(names) ? names[t] : "?";
}

const char *memtier_kind_name(enum memtier_kind k)
{
    static const char *const names[MEMTIER_KINDS] = {"layer",   "rows", "norm",
                                                     "adapter", "kv",   "other"};
    return (unsigned)k < MEMTIER_KINDS ? names[k] : "?";
}

char *store_data_path(const struct memtier_store *s, const char *file_name)
{
    return mem_format("%s/%s", s->data_dir, file_name);
}

/* ---- the lock ---- */

static enum err_code lock_refuse(const struct memtier_store *s, struct err *e)
{
    char text[64] = "";
    ssize_t n = pread(s->lock_fd, text, sizeof(text) - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    long pid = strtol(text, NULL, 10);
    bool serves = strstr(text, "serve") != NULL;
    char who[64];
    if (pid > 0)
        snprintf(who, sizeof(who), "process %ld%s", pid, serves ? " (serving)" : " (writing)");
    else
        snprintf(who, sizeof(who), "another process");
    const char *cure = serves ? "stop that daemon (or ask it to make the change), or use another "
                                "store"
                              : "wait for it to finish, or stop it";
    return err_set(e, ERR_BUSY, "store %s is in use by %s: %s", s->dir, who, cure);
}

static enum err_code lock_acquire(struct memtier_store *s, struct err *e)
{
    char *path = mem_format("%s/lock", s->dir);
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    enum err_code rc = ERR_OK;
    if (s->lock_fd < 0) {
        rc = err_set_errno(e, errno == EACCES || errno == EROFS ? ERR_PERMISSION : ERR_IO,
                           "cannot open %s for writing", path);
    } else if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK)
            rc = lock_refuse(s, e);
        else
            rc =
                err_set_errno(e, ERR_IO, "cannot lock %s (does its file system know flock?)", path);
    } else {
        /* Only for people: who holds it. The lock itself is the kernel's and dies with the holder.
         */
        char text[64];
        int len = snprintf(text, sizeof(text), "%ld %s\n", (long)getpid(),
                           s->access == MEMTIER_SERVE ? "serve" : "write");
        if (ftruncate(s->lock_fd, 0) != 0 || pwrite(s->lock_fd, text, (size_t)len, 0) != len)
            rc = err_set_errno(e, ERR_IO, "cannot write %s", path);
    }
    free(path);
    return rc;
}

/* ---- reading segments ---- */

static enum err_code read_fully(int fd, void *dst, size_t bytes, uint64_t offset, const char *path,
                                struct err *e)
{
    for (size_t done = 0; done < bytes;) {
        size_t want = BASE_MIN(bytes - done, VERIFY_BLOCK);
        ssize_t n = pread(fd, (char *)dst + done, want, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(e, ERR_IO, "cannot read %s at byte %" PRIu64, path, offset + done);
        if (n == 0)
            return err_set(e, ERR_CORRUPT, "%s ends at byte %" PRIu64 ", the index expects more",
                           path, offset + done);
        done += (size_t)n;
    }
    return ERR_OK;
}

enum err_code store_read_segment(const struct memtier_store *s, const struct store_index *x,
                                 uint32_t segment_idx, void *dst, struct err *e)
{
    const struct store_segment *seg = &x->segments[segment_idx];
    size_t bytes = (size_t)seg->info.bytes;
    char *path = store_data_path(s, x->files[seg->file_idx].name);
    enum err_code rc;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        rc = err_set_errno(e, ERR_IO, "cannot open %s", path);
    } else {
        rc = read_fully(fd, dst, bytes, seg->offset, path, e);
        close(fd);
    }
    if (rc == ERR_OK && !hash128_equal(hash128_of(dst, bytes, 0), seg->info.hash)) {
        char hex[33];
        hash128_format(seg->info.hash, hex);
        rc = err_set(e, ERR_CORRUPT,
                     "%s is damaged: segment %s at byte %" PRIu64 " does not match its checksum "
                     "(remove its expert, run gc, add it again)",
                     path, hex, seg->offset);
    }
    free(path);
    return rc;
}

bool store_segment_present(const struct memtier_store *s, const struct store_segment *seg)
{
    char *path = store_data_path(s, s->index->files[seg->file_idx].name);
    struct stat st;
    bool ok = stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
              (uint64_t)st.st_size >= seg->offset + store_padded(seg->info.bytes);
    free(path);
    return ok;
}

/* Descriptions that are too large for the index are read once, here. */
static enum err_code load_metas(const struct memtier_store *s, struct store_index *x, struct err *e)
{
    for (size_t i = 0; i < x->objects_count; i++) {
        struct store_object *o = &x->objects[i];
        if (o->meta != NULL)
            continue;
        struct store_meta *m = store_meta_new(NULL, (size_t)o->meta_bytes);
        enum err_code rc = store_read_segment(s, x, o->meta_segment, m->data, e);
        if (rc != ERR_OK) {
            free(m);
            err_wrap(e, "object %s", o->name);
            return rc;
        }
        o->meta = m;
        o->view.meta = m->data;
    }
    return ERR_OK;
}

/* Two objects with one large description share its bytes in memory too, see load_metas' caller. */
static void adopt_metas(const struct store_index *from, struct store_index *to)
{
    for (size_t i = 0; i < to->objects_count; i++) {
        struct store_object *o = &to->objects[i];
        if (o->meta != NULL)
            continue;
        struct hash128 want = to->segments[o->meta_segment].info.hash;
        for (size_t k = 0; k < from->objects_count && o->meta == NULL; k++) {
            const struct store_object *f = &from->objects[k];
            if (f->meta_segment == STORE_NONE || f->meta == NULL ||
                !hash128_equal(from->segments[f->meta_segment].info.hash, want))
                continue;
            o->meta = f->meta;
            o->meta->refs++;
            o->view.meta = o->meta->data;
        }
    }
}

/* ---- the index file ---- */

static enum err_code read_index_once(struct memtier_store *s, struct store_index **ret,
                                     struct err *e)
{
    struct buf bytes = {0};
    struct store_index *x = NULL;
    enum err_code rc = file_read(s->index_path, STORE_INDEX_MAX, &bytes, e);
    if (rc == ERR_OK)
        rc = store_index_parse(bytes.data, bytes.len, s->index_path, &x, e);
    buf_done(&bytes);
    if (rc == ERR_OK && s->index != NULL)
        adopt_metas(s->index, x);
    if (rc == ERR_OK)
        rc = load_metas(s, x, e);
    if (rc != ERR_OK) {
        store_index_free(x);
        return rc;
    }
    *ret = x;
    return ERR_OK;
}

static enum err_code read_index(struct memtier_store *s, struct store_index **ret, struct err *e)
{
    enum err_code rc = ERR_OK;
    for (int attempt = 0; attempt < OPEN_ATTEMPTS; attempt++) {
        rc = read_index_once(s, ret, e);
        /* Only a reader can be overtaken by a writer; everyone else sees real damage. */
        if (rc == ERR_OK || s->access != MEMTIER_READ)
            break;
    }
    return rc;
}

static bool data_dir_empty(const struct memtier_store *s)
{
    DIR *d = opendir(s->data_dir);
    if (d == NULL)
        return true;
    bool empty = true;
    for (const struct dirent *ent = readdir(d); ent != NULL && empty; ent = readdir(d))
        empty = ent->d_name[0] == '.';
    closedir(d);
    return empty;
}

static enum err_code write_index(const struct memtier_store *s, const struct store_index *x,
                                 struct err *e)
{
    struct buf bytes = {0};
    store_index_format(x, &bytes);
    enum err_code rc = bytes.len > STORE_INDEX_MAX
                           ? err_set(e, ERR_TOO_LARGE, "the index of %s would exceed %zu bytes",
                                     s->dir, STORE_INDEX_MAX)
                           : file_write_atomic(s->index_path, bytes.data, bytes.len, e);
    buf_done(&bytes);
    return rc;
}

enum err_code store_publish(struct memtier_store *s, struct store_index *x, struct err *e)
{
    x->generation = s->index->generation + 1;
    enum err_code rc = write_index(s, x, e);
    if (rc != ERR_OK) {
        store_index_free(x);
        return rc;
    }
    lock_take(&s->lock);
    struct store_index *old = s->index;
    s->index = x;
    lock_drop(&s->lock);
    store_index_free(old);
    return ERR_OK;
}

/* No index: a new store if there is no data either, else something is lost and we must not let the
 * orphan sweep remove what may be all of it. */
static enum err_code create_or_refuse(struct memtier_store *s, struct err *e)
{
    if (!data_dir_empty(s))
        return err_set(e, ERR_CORRUPT,
                       "%s is missing but %s has files: restore the index from a backup, or remove "
                       "the directory to start anew",
                       s->index_path, s->data_dir);
    s->index = store_index_new();
    return s->access == MEMTIER_READ ? ERR_OK : write_index(s, s->index, e);
}

static enum err_code open_directory(struct memtier_store *s, struct err *e)
{
    struct stat st;
    if (s->access == MEMTIER_READ) {
        if (stat(s->dir, &st) != 0)
            return err_set_errno(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO,
                                 "there is no store at %s", s->dir);
        return S_ISDIR(st.st_mode)
                   ? ERR_OK
                   : err_set(e, ERR_INVALID, "%s is a file, a store is a directory", s->dir);
    }
    enum err_code rc = file_mkdirs(s->data_dir, e);
    return rc == ERR_OK ? lock_acquire(s, e) : rc;
}

static enum err_code open_parts(struct memtier_store *s, struct err *e)
{
    enum err_code rc = open_directory(s, e);
    if (rc != ERR_OK)
        return rc;
    rc = access(s->index_path, F_OK) != 0 && errno == ENOENT ? create_or_refuse(s, e)
                                                             : read_index(s, &s->index, e);
    if (rc == ERR_OK && s->access != MEMTIER_READ) {
        uint64_t files = 0, bytes = 0;
        rc = store_remove_orphans(s, &files, &bytes, e);
    }
    return rc;
}

enum err_code memtier_store_open(const char *dir, enum memtier_access access,
                                 struct memtier_store **ret, struct err *e)
{
    if (dir == NULL || dir[0] == '\0')
        return err_set_param(e, ERR_INVALID, "store.path", "the store needs a directory");
    struct memtier_store *s = mem_alloc(sizeof(*s));
    s->dir = mem_strdup(dir);
    s->index_path = mem_format("%s/index", dir);
    s->data_dir = mem_format("%s/data", dir);
    s->access = access;
    s->lock_fd = -1;
    lock_init(&s->lock, LOCK_RANK_STORE, "store");
    enum err_code rc = open_parts(s, e);
    if (rc != ERR_OK) {
        memtier_store_close(&s);
        return rc;
    }
    *ret = s;
    return ERR_OK;
}

void memtier_store_close(struct memtier_store **sp)
{
    struct memtier_store *s = *sp;
    if (s == NULL)
        return;
    assert(s->writer == NULL && s->attached == 0);
    /* The kernel drops the flock with the descriptor; the file stays, so that its inode is one. */
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    store_index_free(s->index);
    lock_done(&s->lock);
    free(s->dir);
    free(s->index_path);
    free(s->data_dir);
    free(s);
    *sp = NULL;
}

enum err_code memtier_store_refresh(struct memtier_store *s, struct err *e)
{
    /* Whoever holds the lock made every change himself. */
    if (s->access != MEMTIER_READ)
        return ERR_OK;
    struct store_index *x = NULL;
    if (access(s->index_path, F_OK) != 0 && errno == ENOENT)
        return ERR_OK;
    enum err_code rc = read_index(s, &x, e);
    if (rc != ERR_OK)
        return rc;
    lock_take(&s->lock);
    struct store_index *old = s->index;
    s->index = x;
    lock_drop(&s->lock);
    store_index_free(old);
    return ERR_OK;
}

/* ---- look-up ---- */

const char *memtier_store_path(const struct memtier_store *s)
{
    return s->dir;
}

uint64_t memtier_store_bytes(const struct memtier_store *s)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < s->index->files_count; i++)
        sum += s->index->files[i].bytes;
    return sum;
}

size_t memtier_store_objects(const struct memtier_store *s)
{
    return s->index->objects_count;
}

const struct memtier_object *memtier_store_object_at(const struct memtier_store *s, size_t idx)
{
    return idx < s->index->objects_count ? &s->index->objects[idx].view : NULL;
}

const struct memtier_object *memtier_store_find(const struct memtier_store *s, const char *name)
{
    uint32_t at = store_index_find_object(s->index, name);
    return at == STORE_NONE ? NULL : &s->index->objects[at].view;
}

enum err_code store_check_writable(const struct memtier_store *s, struct err *e)
{
    if (s->access == MEMTIER_READ)
        return err_set(e, ERR_PERMISSION, "store %s was opened for reading", s->dir);
    return s->writer == NULL ? ERR_OK
                             : err_set(e, ERR_BUSY, "store %s is writing another object", s->dir);
}

enum err_code memtier_store_read(struct memtier_store *s, struct hash128 hash, void *dst,
                                 size_t bytes, struct err *e)
{
    char hex[33];
    hash128_format(hash, hex);
    uint32_t at = store_index_find(s->index, hash);
    if (at == STORE_NONE)
        return err_set(e, ERR_NOT_FOUND, "store %s has no segment %s", s->dir, hex);
    uint64_t have = s->index->segments[at].info.bytes;
    if (have != bytes)
        return err_set(e, ERR_INVALID, "segment %s has %" PRIu64 " bytes, %zu were asked for", hex,
                       have, bytes);
    return store_read_segment(s, s->index, at, dst, e);
}

char *memtier_store_largest_file(const struct memtier_store *s)
{
    const struct store_file *most = NULL;
    for (size_t i = 0; i < s->index->files_count; i++) {
        const struct store_file *f = &s->index->files[i];
        most = most == NULL || f->bytes > most->bytes ? f : most;
    }
    return most == NULL ? NULL : store_data_path(s, most->name);
}

/* ---- verify ---- */

static void note_bad(struct memtier_verify_report *r, const char *text)
{
    if (r->bad++ != 0)
        return;
    size_t len = BASE_MIN(strlen(text), sizeof(r->first_bad) - 1);
    memcpy(r->first_bad, text, utf8_complete_prefix(text, len));
}

enum err_code memtier_store_verify(struct memtier_store *s, const struct progress *p,
                                   struct memtier_verify_report *ret, struct err *e)
{
    struct memtier_verify_report report = {0};
    const struct store_index *x = s->index;
    uint64_t total = 0, largest = 1;
    for (size_t i = 0; i < x->segments_count; i++) {
        if (x->segments[i].refs == 0)
            continue;
        total += x->segments[i].info.bytes;
        largest = BASE_MAX(largest, x->segments[i].info.bytes);
    }
    void *block = malloc((size_t)largest);
    if (block == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for a segment of %" PRIu64 " bytes", largest);
    bool go = progress_report(p, "verify", 0, total);
    for (size_t i = 0; i < x->segments_count && go; i++) {
        const struct store_segment *seg = &x->segments[i];
        struct err why = {0};
        if (seg->refs == 0)
            continue;
        if (store_read_segment(s, x, (uint32_t)i, block, &why) != ERR_OK)
            note_bad(&report, why.msg);
        report.segments++;
        report.bytes += seg->info.bytes;
        go = progress_report(p, "verify", report.bytes, total);
    }
    free(block);
    if (!go)
        return err_set(e, ERR_CANCELLED, "verify was cancelled after %" PRIu64 " segments",
                       report.segments);
    *ret = report;
    return ERR_OK;
}
